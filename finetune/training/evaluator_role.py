"""The Evaluator's process: waits for what the chief prepares, then evaluates every Checkpoint. Never in the cluster.

Takes a JobFolder. Gives its evaluations. Next: `finetune.training.evaluator`.

TensorFlow is imported inside the function, after the environment is set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from finetune.jobs.folder import JobFolder
from finetune.training.progress import Pulse
from finetune.training.waiting import wait_for_prepared

if TYPE_CHECKING:
    from finetune.training.evaluations import EvalResult


def evaluate_checkpoints(
    job: JobFolder, store_url: str, timeout: float, on_result: Callable[[EvalResult], None]
) -> None:
    """Until the last Checkpoint is evaluated; `timeout`: seconds without a sign of life of the chief. Raises
    NotPrepared, and what the Evaluator raises."""
    request = job.request()
    train = request.spec.train
    pulse = Pulse(job.evaluator_path)
    pulse.start()
    try:
        wait_for_prepared(job, timeout=timeout)
        import tensorflow as tf

        from finetune.training.checkpoints import Checkpoints, spec_digest
        from finetune.training.configure import configure
        from finetune.training.evaluate import captions_of
        from finetune.training.evaluator import Evaluator
        from finetune.training.pictures import Pictures
        from finetune.training.prepare import load_prepared
        from finetune.training.stage_networks import StageNetworks
        from finetune.training.summaries import Summaries
        from zoo.catalog import open_catalog

        # The chief trains beside it: half of the cores are enough to keep up.
        tf.config.threading.set_intra_op_parallelism_threads(max(1, len(os.sched_getaffinity(0)) // 2))
        configure(train)
        catalog = open_catalog(store_url)
        prepared = load_prepared(job, request.spec, catalog, parts=("validation",))
        if "validation" not in prepared.splits:
            print("no validation split: nothing to evaluate", file=sys.stderr, flush=True)
            return
        summaries = Summaries(job.events_validation)
        networks = StageNetworks(request.spec, catalog, prepared)
        try:
            Evaluator(
                folder=job,
                train=train,
                head=networks.head,
                network_at=networks.at,
                checkpoints=Checkpoints(job.checkpoints, digest=spec_digest(request.spec)),
                summaries=summaries,
                pulse=pulse,
                chief_timeout=timeout,
                on_result=on_result,
                pictures=Pictures(
                    networks.head,
                    prepared.source,
                    summaries,
                    input_spec=catalog.get(prepared.parent).manifest.input_spec,
                ),
                training_captions=captions_of(prepared.source, prepared.split.train),
            ).run()
        finally:
            summaries.close()
    finally:
        pulse.stop()
