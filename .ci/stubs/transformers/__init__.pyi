# For pyright alone: reading the 2,700 files of transformers takes it half a minute, and tells nothing about polca.
from typing import Any

def __getattr__(name: str) -> Any: ...
