"""Texts that try to become something else: markup, attributes, templates, terminal commands, other directions."""

from __future__ import annotations

CORPUS = {
    "tags": "<script>alert(1)</script><img src=x onerror=alert(1)><svg onload=alert(1)>",
    "quotes": "\" onmouseover=\"alert(1)\" x='y' onfocus='alert(1)' autofocus `z`",
    "closing": "</title></textarea></style></script></pre></code></a></td></table><b onclick=alert(1)>x",
    "comments": "<!--><img src=x onerror=alert(1)>--><![CDATA[<script>alert(1)</script>]]>",
    "template": "{{ 7 * 7 }}{% raw %}{# x #}${7*7}<%= 7*7 %>",
    "address": "javascript:alert(1)//../..\\%2e%2e/?id=1#x",
    "control": "\x00\x07\x1b[31mred\x1b[0m\x1b]8;;http://x\x07\r\nSet-Cookie: a=b\x7f\x85",
    "direction": "\u202egnp.exe\u202c\u2066x\u2069\u200f",
    "entities": "&lt;script&gt;&#x3C;&quot;&amp;amp;&nosemi",
    "separators": "a\u2028b\u2029c\u00a0d\ufeffe",
    "long": "<b>" * 3_000,
    "wide": "𝕏漢字👩\u200d👩\u200d👧e\u0301",
}
