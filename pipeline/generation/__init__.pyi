from .expand import GenerateConfig as GenerateConfig
from .models import ModelInfo as ModelInfo
from .models import convert_checkpoint as convert_checkpoint
from .models import find_model as find_model
from .models import list_models as list_models
from .prompts import accept_rows as accept_rows
from .prompts import read_prompts as read_prompts
from .run import generate as generate
