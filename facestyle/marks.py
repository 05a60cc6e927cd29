"""What a result says of itself, as XMP: that a model made it, and the recipe it was made by.

Knows the words of the packet alone; ``images`` knows where each format keeps it.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from facestyle.errors import InputError

# IPTC, Digital Source Type NewsCodes: a picture that a model changed in part.
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/compositeWithTrainedAlgorithmicMedia"
NAMESPACE = "urn:facestyle:xmp:1.0/"


def packet_of(recipe: Mapping[str, object] | None) -> bytes:
    """The mark and, where there is one, the recipe (JSON values) as an XMP packet."""
    properties = {
        "Iptc4xmpExt:DigitalSourceType": SOURCE_TYPE,
        "xmp:CreatorTool": f"facestyle {(recipe or {}).get('version', '')}".strip(),
    }
    if recipe is not None:
        # Pure ASCII: XML has no place for control characters, and JSON can spell them.
        properties["facestyle:Recipe"] = json.dumps(dict(recipe), sort_keys=True, allow_nan=False)
    lines = "\n".join(
        f"  <{key}>{html.escape(text, quote=False)}</{key}>" for key, text in properties.items()
    )
    return f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
 <rdf:Description rdf:about=""
   xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
   xmlns:xmp="http://ns.adobe.com/xap/1.0/"
   xmlns:facestyle="{NAMESPACE}">
{lines}
 </rdf:Description>
</rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>""".encode()


def recipe_in(packet: bytes, name: str) -> dict[str, Any] | None:
    """The recipe in a packet of any program; None if there is none. ``name`` is for errors."""
    if NAMESPACE.encode() not in packet or b"<!DOCTYPE" in packet:
        return None  # XMP of another program; ours declares no entities that could be bombs
    key = f"{{{NAMESPACE}}}Recipe"
    try:
        for node in ElementTree.fromstring(packet).iter():
            # Other programs may have turned the element into an attribute.
            text = node.text if node.tag == key else node.get(key)
            if text is not None:
                return dict(json.loads(text))
    except (ElementTree.ParseError, ValueError, TypeError, RecursionError) as error:
        raise InputError(f"the recipe in {name} is damaged: {error}") from error
    return None


def is_marked(path: Path) -> bool:
    """Whether a file bears the mark of facestyle; False for one that cannot be read."""
    try:
        return NAMESPACE.encode() in path.read_bytes()  # no format that we write compresses it
    except OSError:
        return False
