from .examination import Finding as Finding
from .examination import examine as examine
