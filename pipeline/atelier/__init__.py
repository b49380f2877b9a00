"""Pictures drawn by code, from a seed and a number: scenes, subjects, settings and styles. Styles are independent of subjects.

`__init__.pyi` lists what other packages may import; names load when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
