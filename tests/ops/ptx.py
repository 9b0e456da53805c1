"""What a compiled kernel says of itself: facts of its PTX that no interpreter can show."""

import re


def facts(ptx: str) -> dict[str, int]:
    """Counts: fused float64 multiplications, asynchronous copies by size, products in flight."""
    return {
        "fused": ptx.count("fma.rn.f64"),
        "wgmma": ptx.count("wgmma.mma_async"),
        "mma": ptx.count("mma.sync"),
        "copies": len(re.findall(r"cp\.async\.c[ag]\.shared", ptx)),
        "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global.*?, 0x10", ptx)),
        "touched": len(touched_in_flight(ptx)),
    }


def touched_in_flight(ptx: str) -> set[str]:
    """Instructions that reach accumulators which `wgmma` may still be writing.

    Those are undefined until `wgmma.wait_group 0` on every path; other products may follow.
    """
    code, labels = _instructions(ptx)
    accumulators: set[str] = set()
    for line in code:
        if found := re.search(r"wgmma\.mma_async[^{]*\{([^}]*)\}", line):
            accumulators |= _registers(found[1])
    touched: set[str] = set()
    # of every instruction, whether it was reached without and with products in flight
    reached = [[False, False] for _ in code]
    ways = [(0, False)] if accumulators else []
    while ways:
        at, flying = ways.pop()
        while at < len(code) and not reached[at][flying]:
            reached[at][flying] = True
            line = code[at]
            if "wgmma.mma_async" in line:
                flying = True
            elif re.search(r"wgmma\.wait_group\S*\s+0;", line):
                flying = False
            elif flying and "wgmma" not in line and _registers(line) & accumulators:
                touched.add(line)
            jump = re.search(r"\bbra(?:\.uni)?\s+(\$L\w+)", line)
            if jump and not line.startswith("@"):
                at = labels[jump[1]]
                continue
            if jump:
                ways.append((labels[jump[1]], flying))
            if re.match(r"(ret|exit|trap)\b", line):
                break
            at += 1
    return touched


def _instructions(ptx: str) -> tuple[list[str], dict[str, int]]:
    code: list[str] = []
    labels: dict[str, int] = {}
    for line in map(str.strip, ptx.splitlines()):
        if label := re.match(r"(\$L\w+):", line):
            labels[label[1]] = len(code)
        elif line and (line[0].isalpha() or line[0] == "@"):
            code.append(line)
    return code, labels


def _registers(text: str) -> set[str]:
    return set(re.findall(r"%[a-z]+\d+", text))
