"""PTX text: what a module declares is found, whatever stands around it."""

import pytest
from emulator import PTXError, parse

MODULE = """
.version 8.7
.target sm_90a
.extern .shared .align 16 .b8 dynamic[];
.shared .align 8 .b8 fixed[24]; // of the module
.visible .entry first(
    .param .u64 .ptr .global .align 1 first_0,
    .param .align 8 .b8 first_1[40],
    .param .f32 first_2
)
.reqntid 128
{
    .reg .pred  %p<2>;
    .reg .b32 %r<3>, named;
    /* a remark
       over two lines */
    .loc 1 17 4
    { mov.u32 %r0, %tid.x; }
LOOP:
    @!%p1 add.s32
        %r1, %r0, 1;
    .pragma "nounroll";
    @%p0 bra LOOP;
    ret;
}
.visible .entry second() { ret; }
"""


def test_kernels_parameters_labels_and_guards_are_found() -> None:
    kernels = parse(MODULE)
    assert list(kernels) == ["first", "second"]
    first = kernels["first"]
    assert first.parameters == [("first_0", "u64", 1), ("first_1", "b8", 40), ("first_2", "f32", 1)]
    assert first.threads == 128 and first.shared == {"dynamic": 0, "fixed": 0} and first.shared_bytes == 24
    assert first.register_types == {"%p": "pred", "%r": "b32", "=named": "b32"}
    assert [(x.op, x.predicate, x.negated) for x in first.code] == [
        ("mov", None, False),
        ("add", "%p1", True),
        ("bra", "%p0", False),
        ("ret", None, False),
    ]
    assert first.labels == {"LOOP": 1}
    add = first.code[1]
    assert (add.args, add.source_line) == (["%r1", "%r0", "1"], 17)
    assert MODULE.splitlines()[add.line - 1].strip() == "@!%p1 add.s32"
    assert [x.op for x in kernels["second"].code] == ["ret"]


def test_a_parameter_that_is_not_understood_is_refused() -> None:
    with pytest.raises(PTXError, match="unsupported parameter"):
        parse(".entry k(.param .texref t[]) { ret; }")
