"""Licences and languages as sources spell them, each in one spelling: CC-BY-NC-4.0, CC0; eng, fre."""

import functools
import re

_LINK = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]{1,40})(?:/(\d(?:\.\d)?))?", re.I)
_WORDS = re.compile(r"creative commons attribution([\w\s–-]{0,400}?)(?:licen[cs]e|\(|,|\.|$)", re.I)
_PARTS = r"((?:[\s_-]{0,3}(?:nc|nd|sa))*+)"
_SHORT = re.compile(
    rf"(?:cc[\s_-]{{0,3}}|creative[ _-]commons[\s_-]{{0,3}}|\b)by{_PARTS}(?:[\s_-]{{0,3}}v?(\d(?:\.\d)?))?"
    r"(?:[\s,_-]{0,3}(?:international|unported|generic|igo|deed|licen[cs]e|[a-z]{2}\b|\([^()]{0,60}\))){0,4}$",
    re.I,
)
_INSIDE = re.compile(r"\bCC[ _-]?BY((?:[ _-]?(?:NC|ND|SA))*+)(?:[ _-]?(\d\.\d))?\b")  # of a sentence
_CC0 = re.compile(r"(?:cc[\s_-]?(?:0|zero)\b|(?:cc[\s_-]?)?public[\s_-]?domain\b|no known copyright)", re.I)
# ISO 639-1 and, in brackets, the terminological code of ISO 639-2 where MEDLINE writes the bibliographic one.
_CODES = """
aa aar ab abk ae ave af afr ak aka am amh an arg ar ara as asm av ava ay aym az aze ba bak be bel bg bul bi bis bm
bam bn ben bo tib(bod) br bre bs bos ca cat ce che ch cha co cos cr cre cs cze(ces) cu chu cv chv cy wel(cym) da dan
de ger(deu) dv div dz dzo ee ewe el gre(ell) en eng eo epo es spa et est eu baq(eus) fa per(fas) ff ful fi fin fj
fij fo fao fr fre(fra) fy fry ga gle gd gla gl glg gn grn gu guj gv glv ha hau he heb hi hin ho hmo hr hrv ht hat hu
hun hy arm(hye) hz her ia ina id ind ie ile ig ibo ii iii ik ipk io ido is ice(isl) it ita iu iku ja jpn jv jav ka
geo(kat) kg kon ki kik kj kua kk kaz kl kal km khm kn kan ko kor kr kau ks kas ku kur kv kom kw cor ky kir la lat lb
ltz lg lug li lim ln lin lo lao lt lit lu lub lv lav mg mlg mh mah mi mao(mri) mk mac(mkd) ml mal mn mon mr mar ms
may(msa) mt mlt my bur(mya) na nau nb nob nd nde ne nep ng ndo nl dut(nld) nn nno no nor nr nbl nv nav ny nya oc oci
oj oji om orm or ori os oss pa pan pi pli pl pol ps pus pt por qu que rm roh rn run ro rum(ron) ru rus rw kin sa san
sc srd sd snd se sme sg sag si sin sk slo(slk) sl slv sm smo sn sna so som sq alb(sqi) sr srp ss ssw st sot su sun
sv swe sw swa ta tam te tel tg tgk th tha ti tir tk tuk tl tgl tn tsn to ton tr tur ts tso tt tat tw twi ty tah ug
uig uk ukr ur urd uz uzb ve ven vi vie vo vol wa wln wo wol xh xho yi yid yo yor za zha zh chi(zho) zu zul
"""
_PAIRS = list(zip(_CODES.split()[::2], _CODES.split()[1::2], strict=True))
_LANGUAGES = {short: code[:3] for short, code in _PAIRS} | {code[4:7]: code[:3] for _, code in _PAIRS if len(code) > 3}


@functools.lru_cache(1024)
def normalise_language(text: str) -> str:
    """A language's code as MEDLINE writes it (ISO 639-2, bibliographic): "en-US" is eng; an unknown one stays."""
    first = re.split("[-_]", text.strip().lower(), maxsplit=1)[0]
    return _LANGUAGES.get(first, first)


@functools.lru_cache(1024)
def normalise_licence(text: str) -> str:
    """The name of a Creative Commons licence (CC-BY-NC-SA-4.0, CC0, PDM); another one as given, to 100 characters."""
    text = " ".join(text[:1000].split())
    if named := find_licence_link(text):
        return named
    if found := _SHORT.match(text) or _INSIDE.search(text):
        parts = re.findall("nc|nd|sa", found[1].lower())
        name = "-".join(["CC-BY", *(part.upper() for part in ("nc", "sa", "nd") if part in parts)])
        return name + (f"-{found[2]}" if found[2] else "")
    return find_licence_words(text) or ("CC0" if _CC0.match(text) else text[:100])


def find_licence_link(text: str) -> str:
    """The licence that a link to Creative Commons in a text names; "" for none."""
    if not (found := _LINK.search(text)):
        return ""
    kind, version = found[2].lower(), found[3]
    name = {"zero": "CC0", "mark": "PDM"}.get(kind, "CC-" + kind.upper())
    return name + (f"-{version}" if version and name.startswith("CC-") else "")


def find_licence_words(text: str) -> str:
    """The licence that a sentence such as "under a Creative Commons Attribution License" names; "" for none."""
    if not (found := _WORDS.search(text)):
        return ""
    words = found[1].lower().replace("-", "").replace(" ", "")
    return (
        "CC-BY"
        + ("-NC" if "noncommercial" in words else "")
        + ("-ND" if "noderiv" in words else "-SA" if "sharealike" in words else "")
    )
