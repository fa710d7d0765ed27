"""StageNetworks: for the Checkpoint of any step the network that it is of, with the split as it sees it.

Takes what was prepared. Gives Networks, one after the other. Next: `finetune.training.evaluator`.

Checkpoints come in the order of their steps, so that one network at a time is enough; the head is the same in all.
"""

from __future__ import annotations

from finetune.models.network import Network
from finetune.spec import JobSpec
from finetune.training.evaluator import Validation
from finetune.training.initialise import build_network
from finetune.training.inputs import validation_input
from finetune.training.prepare import Prepared
from finetune.training.stages import Stage, stage_at, stages_of
from zoo.catalog import Catalog


class StageNetworks:
    """`head`: shared by the networks of all stages."""

    def __init__(self, spec: JobSpec, catalog: Catalog, prepared: Prepared) -> None:
        self._spec, self._catalog, self._prepared = spec, catalog, prepared
        self._stages = stages_of(spec)
        self.head = prepared.build_head(seed=spec.train.seed)
        self._built: tuple[Stage, Network] | None = None
        self._seen: dict[str, Validation] = {}  # part → it, as the present network sees it

    def at(self, step: int, *, part: str = "validation") -> tuple[Network, Validation]:
        """The network of the Checkpoint of `step`, and a split with the features that it gives when it is called."""
        stage = stage_at(self._stages, step)
        if self._built is None or self._built[0].number != stage.number:
            self._built, self._seen = None, {}  # the one before goes first: two large backbones may not fit
            self._built = (stage, build_network(self._spec, self._catalog, self._prepared, stage, head=self.head))
        network = self._built[1]
        if part not in self._seen:
            self._seen[part] = validation_input(self._spec, self._prepared, self._catalog, network, part=part)
        return network, self._seen[part]
