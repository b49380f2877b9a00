"""Job files: run a job on this machine, submit it to a Ray cluster, render it as a schedule, and report on its runs.

`__init__.pyi` lists what other packages may import; names load when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
