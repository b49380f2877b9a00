from .builder import build as build
from .embed import EMBED_STAGE as EMBED_STAGE
from .embed import EmbedConfig as EmbedConfig
from .plan import plan_shards as plan_shards
from .plan import save_plan as save_plan
from .request import BuildRequest as BuildRequest
from .request import BuildSummary as BuildSummary
from .request import settle as settle
