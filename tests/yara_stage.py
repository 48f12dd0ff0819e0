"""Rules of YARA for tests, and what they match."""

from __future__ import annotations

EVIL = """
rule Evil {
  meta:
    severity = "high"
    confidence = 80
    description = "bytes that are evil"
  strings:
    $evil = "evil-bytes"
  condition:
    $evil
}
"""
ENDLESS = """
rule Endless {
  strings:
    $a = "endless"
  condition:
    $a at 0 and for all i in (0..1000000000000) : (uint8(i % 7) >= 0)
}
"""
