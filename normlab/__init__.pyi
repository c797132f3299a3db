# The public surface of normlab, the one list of it: type checkers read it, and `__init__.py` imports from it lazily.
from normlab import bench as bench
from normlab import check as check
from normlab import data as data
from normlab import errors as errors
from normlab import explain as explain
from normlab import kernels as kernels
from normlab import layers as layers
from normlab import models as models
from normlab import norms as norms
from normlab import report as report
from normlab import reproduce as reproduce
from normlab import scratch as scratch
from normlab import study as study
from normlab.kernels import backend_for as backend_for
from normlab.kernels import stages as stages
from normlab.kernels import use_backend as use_backend
from normlab.layers import distributed as distributed
from normlab.layers import fuse_norms as fuse_norms
from normlab.layers import make_norm as make_norm
from normlab.layers import recomputed_outputs as recomputed_outputs
from normlab.layers import register_adapter as register_adapter
from normlab.layers import restore_norms as restore_norms
from normlab.layers import swap_norms as swap_norms
from normlab.layers import swap_report as swap_report
from normlab.norms import Affine as Affine
from normlab.norms import Moments as Moments
from normlab.norms import average as average
from normlab.norms import exp as exp
from normlab.norms import grid as grid
from normlab.norms import maximum as maximum
from normlab.norms import norm_names as norm_names
from normlab.norms import register_norm as register_norm
from normlab.norms import rsqrt as rsqrt
from normlab.norms import sqrt as sqrt
from normlab.norms import stop_gradient as stop_gradient

__version__: str
