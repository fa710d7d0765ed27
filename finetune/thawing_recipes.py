"""Recipes that train the backbone too, and the one for a handful of images a class.

Takes nothing. Gives Recipes. Next: `finetune.recipes`, the table of them. Where a value is another project's, its
source is named; where ours differs from it, that is said.
"""

from __future__ import annotations

from finetune.recipe import Choice, Recipe


def gradual() -> Recipe:
    """Head, then the last blocks, then everything, in one job."""
    return Recipe(
        name="gradual",
        head="classifier",
        summary="the head on cached features, then the last four endpoints, then everything, ever more slowly",
        choices={
            "train.stages": Choice(
                value=[
                    {"train_from": "none", "steps": 500, "learning_rate": 1e-3},
                    {
                        "train_from": "last:4",
                        "steps": 300,
                        "learning_rate": 1e-4,
                        "warmup_steps": 30,
                        "schedule": "cosine",
                    },
                    {
                        "train_from": "all",
                        "steps": 200,
                        "learning_rate": 2e-5,
                        "warmup_steps": 20,
                        "schedule": "cosine",
                    },
                ],
                reason="gradual unfreezing (arXiv:1801.06146): a random head's gradients would spoil features that "
                "were good; the head alone costs a millisecond a step, so it may learn until it has nothing to gain; "
                "the rate falls by five to ten with each stage, and each begins gently, since its moments are new",
            ),
            "train.batch_size": Choice(value=32, reason="what two cores or a small card hold of images"),
            "train.evaluate_every": Choice(value=100, reason="each stage is looked at several times, and at its end"),
            "train.optimizer.name": Choice(value="adamw", reason="weight decay apart from the gradient"),
            "train.optimizer.weight_decay": Choice(
                value=0.01, reason="AdamW's usual; times a small rate it hardly moves the backbone"
            ),
            "train.optimizer.layer_decay": Choice(
                value=0.8, reason="early layers are general and move least; 0.65 to 0.85 is usual (arXiv:2106.08254)"
            ),
            "data.augment.crop": Choice(value="inception", reason="no epoch sees the same pixels once they matter"),
            "data.augment.crop_area": Choice(
                value=[0.4, 1.0], reason="crops of ImageNet's 5 % lose what a small data set is about"
            ),
        },
    )


def full() -> Recipe:
    """The whole network, after its head has been taught."""
    return Recipe(
        name="full",
        head="classifier",
        summary="the head on cached features, then the whole network at once: for thousands of images and a GPU",
        choices={
            "train.stages": Choice(
                value=[
                    {"train_from": "none", "steps": 500, "learning_rate": 1e-3},
                    {
                        "train_from": "all",
                        "steps": 1500,
                        "learning_rate": 1e-4,
                        "warmup_steps": 100,
                        "schedule": "cosine",
                    },
                ],
                reason="linear probing, then fine-tuning (arXiv:2202.10054): it keeps features that hold outside the "
                "training data, and costs a second more; a tenth of the head's rate for weights that are already good",
            ),
            "train.batch_size": Choice(value=32, reason="what two cores or a small card hold of images"),
            "train.evaluate_every": Choice(value=250, reason="eight looks at the validation split"),
            "train.optimizer.name": Choice(value="adamw", reason="weight decay apart from the gradient"),
            "train.optimizer.weight_decay": Choice(value=0.01, reason="AdamW's usual"),
            "train.optimizer.ema_decay": Choice(
                value=0.99, reason="the last hundred steps averaged: steadier than any one of them"
            ),
            "data.augment.crop": Choice(value="inception", reason="a whole network learns few images by heart"),
            "data.augment.crop_area": Choice(
                value=[0.4, 1.0], reason="crops of ImageNet's 5 % lose what a small data set is about"
            ),
            "data.augment.colour": Choice(value="fast", reason="brightness and saturation, as TF-Slim's fast mode"),
        },
    )


def few_shot() -> Recipe:
    """k images a class, on features that nobody changes."""
    return Recipe(
        name="few-shot",
        head="classifier",
        summary="ten images a class (data.per_class), a linear classifier on cached features, held back strongly",
        choices={
            "data.per_class": Choice(
                value=10, reason="the rest of the training split is left out; other draws by other train.seed"
            ),
            "data.views": Choice(value=6, reason="itself, its mirror image, four crops: six times as many vectors"),
            "train.steps": Choice(
                value=1000,
                reason="5 stamps a class: accuracy 0.573 with the cosine's 1000, 0.521 with 300 smoothed ones",
            ),
            "train.batch_size": Choice(value=32, reason="small sets are a few batches an epoch"),
            "train.evaluate_every": Choice(value=100, reason="ten looks at the validation split"),
            "train.optimizer.name": Choice(value="adamw", reason="weight decay apart from the gradient"),
            "train.optimizer.learning_rate": Choice(
                value=3e-3, reason="few steps; falls to nothing, so that the last batch doesn't decide"
            ),
            "train.optimizer.schedule": Choice(value="cosine", reason="ends at rest: no luck of the last batch"),
            "train.optimizer.weight_decay": Choice(
                value=0.1, reason="more numbers than images: a strong pull to zero chooses among many that fit"
            ),
        },
    )


def slim_flowers() -> Recipe:
    """TF-Slim's finetune_inception_v3_on_flowers.sh, both of its commands in one job."""
    return Recipe(
        name="slim-flowers",
        head="classifier",
        summary="TF-Slim's two-phase command for flowers: last layers at 0.01, then all layers at 0.0001",
        choices={
            "train.stages": Choice(
                value=[
                    {"train_from": "none", "steps": 1000, "learning_rate": 0.01},
                    {"train_from": "all", "steps": 500, "learning_rate": 0.0001},
                ],
                reason="--max_number_of_steps=1000 with --trainable_scopes of the last layers, then 500 of all layers; "
                "there the first phase sees distorted images, here cached features, seconds instead of an hour",
            ),
            "train.batch_size": Choice(value=32, reason="--batch_size=32"),
            "train.evaluate_every": Choice(value=100, reason="the script looks once, at each phase's end"),
            "train.optimizer.name": Choice(value="rmsprop", reason="--optimizer=rmsprop"),
            "train.optimizer.rho": Choice(value=0.9, reason="--rmsprop_decay, the script's default"),
            "train.optimizer.momentum": Choice(value=0.9, reason="--rmsprop_momentum, the script's default"),
            "train.optimizer.epsilon": Choice(value=1.0, reason="--opt_epsilon, the script's default"),
            "train.optimizer.schedule": Choice(value="constant", reason="--learning_rate_decay_type=fixed"),
            "train.optimizer.weight_decay": Choice(
                value=0.00004, reason="--weight_decay=0.00004; in the loss there, apart from the gradient here"
            ),
            "train.optimizer.clip_norm": Choice(value=None, reason="the script doesn't clip"),
            "data.augment.crop": Choice(value="inception", reason="inception_preprocessing, in the second phase"),
            "data.augment.mirror": Choice(value=True, reason="inception_preprocessing: flowers have no left and right"),
            "data.augment.colour": Choice(value="fast", reason="inception_preprocessing with fast_mode"),
        },
    )


def im2txt() -> Recipe:
    """Show and Tell as im2txt trains it on COCO, both phases in one job."""
    return Recipe(
        name="im2txt",
        head="captioner",
        summary="im2txt on COCO: a million steps of the decoder, then two million of everything; days on a GPU",
        choices={
            "train.stages": Choice(
                value=[
                    {"train_from": "none", "steps": 1_000_000, "learning_rate": 2.0},
                    {"train_from": "all", "steps": 2_000_000, "learning_rate": 0.0005, "schedule": "constant"},
                ],
                reason="--number_of_steps=1000000 with Inception frozen, then --train_inception to 3000000 at "
                "train_inception_learning_rate; the first phase on cached features. BatchNorm stays frozen: "
                "--set model.batch_norm=train does as im2txt",
            ),
            "train.batch_size": Choice(value=32, reason="ModelConfig.batch_size"),
            "train.evaluate_every": Choice(value=10_000, reason="a hundred looks in the first phase"),
            "train.optimizer.name": Choice(value="sgd", reason="TrainingConfig.optimizer"),
            "train.optimizer.learning_rate": Choice(value=2.0, reason="TrainingConfig.initial_learning_rate"),
            "train.optimizer.schedule": Choice(value="step", reason="a staircase"),
            "train.optimizer.decay_rate": Choice(value=0.5, reason="TrainingConfig.learning_rate_decay_factor"),
            "train.optimizer.decay_steps": Choice(
                value=146_590, reason="8 epochs of COCO's 586363 captions in batches of 32: set it for other data"
            ),
            "train.optimizer.clip_norm": Choice(value=5.0, reason="TrainingConfig.clip_gradients"),
            "head.arguments.embedding": Choice(value=512, reason="ModelConfig.embedding_size"),
            "head.arguments.units": Choice(value=512, reason="ModelConfig.num_lstm_units"),
            "head.arguments.initial_scale": Choice(value=0.08, reason="ModelConfig.initializer_scale, of all weights"),
            "head.arguments.embedding_dropout": Choice(value=0.3, reason="lstm_dropout_keep_prob=0.7 of the inputs"),
            "head.arguments.output_dropout": Choice(value=0.3, reason="lstm_dropout_keep_prob=0.7 of the outputs"),
            "head.arguments.normalise_features": Choice(value="none", reason="im2txt takes them as they are"),
            "head.arguments.word_bag": Choice(value=0.0, reason="im2txt has no second loss"),
            "head.arguments.min_count": Choice(value=4, reason="--min_word_count=4"),
            "head.arguments.beam_size": Choice(value=3, reason="CaptionGenerator's beam_size"),
            "head.arguments.length_penalty": Choice(value=0.0, reason="length_normalization_factor=0"),
            "data.views": Choice(value=1, reason="cached features show the picture itself; im2txt distorts it"),
        },
    )
