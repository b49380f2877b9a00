from .examination import examine as examine
from .findings import Finding as Finding
from .published import verify as verify
