class MosesTokenizer:
    IsAlpha: str
    IsAlnum: str
    IsN: str
    IsLower: str
    NONBREAKING_PREFIXES: list[str]
    NUMERIC_ONLY_PREFIXES: list[str]
    def __init__(self, lang: str = ...) -> None: ...
