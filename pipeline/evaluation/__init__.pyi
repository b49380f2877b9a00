from .config import EvaluateConfig as EvaluateConfig
from .config import read_evaluate_config as read_evaluate_config
from .plan import count_pictures as count_pictures
from .plan import open_study as open_study
from .records import Summary as Summary
from .run import evaluate as evaluate
from .run import summary_text as summary_text
