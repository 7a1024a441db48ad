"""The public names: what type checkers see, and what ``ggprune.NAME`` imports when it is used."""

from ggprune.api.measuring import evaluate as evaluate
from ggprune.api.measuring import evaluator as evaluator
from ggprune.api.measuring import probe as probe
from ggprune.api.measuring import sweep as sweep
from ggprune.api.pruning import Pruned as Pruned
from ggprune.api.pruning import apply as apply
from ggprune.api.pruning import apply_to_adapter as apply_to_adapter
from ggprune.api.pruning import outputs as outputs
from ggprune.api.pruning import prune as prune
from ggprune.api.stages import calibrate as calibrate
from ggprune.api.stages import choose as choose
from ggprune.api.stages import convert_lists as convert_lists
from ggprune.api.stages import imatrix as imatrix
from ggprune.api.stages import quantize as quantize
from ggprune.calibration.merge import merge as merge
from ggprune.calibration.settings import Settings as Settings
from ggprune.calibration.statistics import Domain as Domain
from ggprune.calibration.statistics import ExpertSums as ExpertSums
from ggprune.calibration.statistics import Statistics as Statistics
from ggprune.choosing.methods import METHODS as METHODS
from ggprune.choosing.request import Budget as Budget
from ggprune.choosing.request import Request as Request
from ggprune.errors import FormatError as FormatError
from ggprune.errors import GgpruneError as GgpruneError
from ggprune.errors import HubError as HubError
from ggprune.errors import InputError as InputError
from ggprune.errors import Interrupted as Interrupted
from ggprune.errors import LlamaError as LlamaError
from ggprune.errors import MismatchError as MismatchError
from ggprune.errors import OutputError as OutputError
from ggprune.errors import UnsupportedModelError as UnsupportedModelError
from ggprune.errors import VerificationError as VerificationError
from ggprune.evaluation.evaluator import Evaluation as Evaluation
from ggprune.evaluation.evaluator import Evaluator as Evaluator
from ggprune.evaluation.sweep import Sweep as Sweep
from ggprune.llama.options import QuantizeOptions as QuantizeOptions
from ggprune.llama.options import RunOptions as RunOptions
from ggprune.model import Identity as Identity
from ggprune.model import MoeModel as MoeModel
from ggprune.model import open_model as open_model
from ggprune.plan import LayerPlan as LayerPlan
from ggprune.plan import Plan as Plan
from ggprune.types import Progress as Progress
from ggprune.version import __version__ as __version__

__all__: list[str]
