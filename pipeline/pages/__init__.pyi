from .charts import dots as dots
from .charts import heat as heat
from .charts import lines as lines
from .charts import picture_table as picture_table
from .html import STYLE as STYLE
from .html import html_table as html_table
from .html import html_text as html_text
