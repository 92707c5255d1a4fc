"""PTX text to instructions: labels, registers, parameters and shared variables of every kernel of a module."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .formats import WIDTH

_SKIPPED = (".loc ", ".loc\t", ".file", ".section", ".pragma")
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?(?:\.attribute\S+\s+)?\.(\w+)\s+([\w$]+)(?:\[(\d*)\])?")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.(\w+)\s+(?:\.ptr\s*.*\s)?([\w$]+)\s*(?:\[(\d+)\])?\s*$")


class PTXError(RuntimeError):
    """The emulated program did what it must not do, or what the emulator does not know."""


@dataclass
class Instruction:
    """One instruction: ``@predicate op.mods args``.

    Attributes:
        predicate, negated: the guard, or None.
        op, mods: its name, split at the dots.
        args: operands as text.
        line, source_line: of the PTX, and of the source that ``.loc`` names.
    """

    op: str
    mods: list[str]
    args: list[str]
    line: int
    source_line: int | None = None
    predicate: str | None = None
    negated: bool = False

    def __str__(self) -> str:
        return f"{'.'.join([self.op, *self.mods])} {', '.join(self.args)} (line {self.line})"


@dataclass
class Kernel:
    """One ``.entry``.

    Attributes:
        name: of the kernel.
        parameters: name, type and number of elements of each.
        threads: of a program, where the module says so.
        code, labels: instructions, and the index of the one that a label names.
        register_types: type by prefix ('%r') or, after '=', by name.
        shared, local: offset of each variable.
        shared_bytes, local_bytes: what its variables take.
    """

    name: str
    parameters: list[tuple[str, str, int]]
    threads: int | None = None
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    register_types: dict[str, str] = field(default_factory=dict)
    shared: dict[str, int] = field(default_factory=dict)
    local: dict[str, int] = field(default_factory=dict)
    shared_bytes: int = 0
    local_bytes: int = 0


def split_operands(text: str) -> list[str]:
    """Splits at commas outside of brackets and braces."""
    parts, depth, current = [], 0, ""
    for character in text:
        depth += (character in "{[(") - (character in "}])")
        if character == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return [*parts, current.strip()] if current.strip() else parts


def elements(operand: str) -> list[str]:
    """The registers of ``{a, b}``, or the operand itself."""
    return split_operands(operand[1:-1]) if operand.startswith("{") else [operand]


def parse(ptx: str) -> dict[str, Kernel]:
    """The kernels of a module by name."""
    text = re.sub(r"/\*.*?\*/", lambda comment: "\n" * comment[0].count("\n"), ptx, flags=re.S)
    lines = [re.sub(r"//.*", "", line).strip() for line in text.splitlines()]
    kernels: dict[str, Kernel] = {}
    module_shared: list[str] = []
    head, at = "", 0
    while at < len(lines):
        line = lines[at]
        if not head and re.match(r"(\.extern\s+|\.visible\s+|\.weak\s+)*\.shared", line):
            module_shared.append(line)
        if head or ".entry" in line:
            head += " " + line
            if "{" in line:
                kernel = _kernel(head)
                for declaration in module_shared:
                    _declare_shared(kernel, declaration)
                at = _Body(kernel).read(lines, at)
                kernels[kernel.name] = kernel
                head = ""
        at += 1
    return kernels


def _kernel(head: str) -> Kernel:
    """A kernel without its body."""
    name = re.search(r"\.entry\s+([\w$]+)", head)
    if name is None:
        raise PTXError(f"no name in {head!r}")
    parameters = []
    listed = re.search(r"\((.*?)\)", head, re.S)
    for declaration in split_operands(listed[1]) if listed else []:
        found = _PARAMETER.search(declaration)
        if found is None:
            raise PTXError(f"unsupported parameter {declaration!r}")
        parameters.append((found[2], found[1], int(found[3] or 1)))
    threads = re.search(r"\.reqntid\s+(\d+)", head) or re.search(r"\.maxntid\s+(\d+)", head)
    return Kernel(name[1], parameters, int(threads[1]) if threads else None)


class _Body:
    """Reads statements between the braces of one kernel."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.depth = 0
        self.statement = ""
        self.began = 0
        self.source_line: int | None = None

    def read(self, lines: list[str], at: int) -> int:
        """Reads from the line of the opening brace to that of the closing one, whose index it returns."""
        rest = lines[at][lines[at].index("{") :]
        while True:
            if self._line(rest, at + 1):
                return at
            at += 1
            rest = lines[at]

    def _line(self, rest: str, number: int) -> bool:
        """Whether the kernel ends on this line."""
        while rest := rest.strip():
            if not self.statement:
                label = re.match(r"([\w$]+):(?!:)\s*", rest)
                if label:
                    self.kernel.labels[label[1]] = len(self.kernel.code)
                    rest = rest[label.end() :]
                    continue
                if rest[0] in "{}":
                    self.depth += 1 if rest[0] == "{" else -1
                    if self.depth == 0:
                        return True
                    rest = rest[1:]
                    continue
                if rest.startswith(_SKIPPED):
                    rest = self._skip(rest)
                    continue
                self.began = number
            text, ended, rest = rest.partition(";")
            self.statement += " " + text
            if ended:
                _add(self.kernel, self.statement.strip(), self.began, self.source_line)
                self.statement = ""
        return False

    def _skip(self, rest: str) -> str:
        if rest.startswith((".loc ", ".loc\t")):
            self.source_line = int(rest.split()[2])
        return rest.partition(";")[2] if rest.startswith(".pragma") else ""


def _declare_shared(kernel: Kernel, statement: str) -> None:
    found = _SHARED.search(statement)
    if found is None:
        raise PTXError(f"unsupported declaration {statement!r}")
    alignment, count = int(found[1] or 4), int(found[4]) if found[4] else int("[" not in statement)
    kernel.shared_bytes = -(-kernel.shared_bytes // alignment) * alignment
    kernel.shared[found[3]] = kernel.shared_bytes
    kernel.shared_bytes += WIDTH[found[2]] * count


def _add(kernel: Kernel, statement: str, line: int, source_line: int | None) -> None:
    """A declaration or an instruction."""
    if statement.startswith(".reg"):
        kind, names = statement.removeprefix(".reg").split(None, 1)
        for name in split_operands(names):
            several = re.match(r"(%?[\w$]+)<(\d+)>", name)
            kernel.register_types[several[1] if several else "=" + name] = kind.removeprefix(".")
    elif re.match(r"(\.extern\s+|\.visible\s+)*\.shared", statement):
        _declare_shared(kernel, statement)
    elif statement.startswith(".local"):
        found = re.search(r"\.align\s+(\d+)\s+\.(\w+)\s+([\w$]+)\[(\d+)\]", statement)
        if found is None:
            raise PTXError(f"unsupported declaration {statement!r}")
        kernel.local[found[3]] = kernel.local_bytes
        kernel.local_bytes += -(-int(found[4]) * WIDTH[found[2]] // 16) * 16
    elif statement and not statement.startswith("."):
        kernel.code.append(_instruction(statement, line, source_line))


def _instruction(statement: str, line: int, source_line: int | None) -> Instruction:
    guard = re.match(r"@(!?)(%?[\w$]+)\s+", statement)
    name, *operands = statement[guard.end() if guard else 0 :].split(None, 1)
    op, *mods = name.split(".")
    made = Instruction(op, mods, split_operands(operands[0]) if operands else [], line, source_line)
    if guard:
        made.predicate, made.negated = guard[2], bool(guard[1])
    return made
