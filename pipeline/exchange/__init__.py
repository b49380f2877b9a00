"""Import and export: CompVis npz files, clip-retrieval folders, data sets and folders of pictures.

`__init__.pyi` lists what other packages may import; names load when they are first used.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
