"""Makes C++ of a CUDA source: launches and variables in shared memory become calls of emulator.hpp.

    python rewrite.py FROM.cu TO.cpp

Lines keep their numbers. Whatever it does not understand is an error.
"""

import re
import sys

NAMESPACE = "::lah::cuda_emulation::"
NAME = re.compile(r"[A-Za-z_]\w*$")
SHARED = re.compile(r"__shared__\s+(?P<type>[\w:]+(?:<[\w:, /]+>)?)\s+(?P<name>\w+)(?P<array>(?:\[[^\]]+\])*);")
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?P<type>[\w:]+)\s+(?P<name>\w+)\[\];")


def kernel_start(text: str, end: int) -> int:
    """Where `name` or `name<arguments>` starts, which ends at text[end]."""
    at = len(text[:end].rstrip())
    if text[at - 1] == ">":
        depth = 1
        at -= 1
        while depth > 0:
            at -= 1
            depth += {">": 1, "<": -1}.get(text[at], 0)
    name = NAME.search(text, 0, at)
    if name is None:
        raise ValueError(f"a launch without a kernel: {text[at : end + 40]}")
    return name.start()


def rewrite(text: str) -> str:
    while (at := text.find("<<<")) >= 0:
        start, end = kernel_start(text, at), text.index(">>>", at)
        kernel, configuration = text[start:at], text[at + 3 : end]
        text = f"{text[:start]}{NAMESPACE}launch({kernel}, {configuration}){text[end + 3 :]}"
    text = DYNAMIC.sub(rf"auto* \g<name> = static_cast<\g<type>*>({NAMESPACE}dynamic_shared());", text)
    text = SHARED.sub(rf"auto& \g<name> = {NAMESPACE}shared<\g<type>\g<array>>([] {{}});", text)
    if left := re.search(r"__shared__.*|>>>.*", text):
        raise ValueError(f"not understood: {left.group()}")
    return text


def main(source: str, target: str) -> None:
    with open(source, encoding="utf-8") as file:
        text = rewrite(file.read())
    with open(target, "w", encoding="utf-8") as file:
        file.write(f'#line 1 "{source}"\n{text}')


if __name__ == "__main__":
    main(*sys.argv[1:])
