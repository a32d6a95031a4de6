"""A compiled program's text, read: against one worked by hand, and against programs compiled for simulated devices."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxdistill.config.schema import ParallelConfig
from jaxdistill.parallel import make_mesh
from jaxdistill.plan import hlo

# As TPU's compiler writes it, shortened: a loop of 5 turns that gathers, and inside of it one that counts to 8 in steps
# of two and passes parts around; a gather that three fusions start, go on with and end; a sum of which a part is kept.
BY_HAND = """HloModule jit_step, is_scheduled=true

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%inner_cond (p: (bf16[32,64], u32[])) -> pred[] {
  %constant.1 = u32[]{:T(128)} constant(8)
  %p = (bf16[32,64]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  ROOT %lt = pred[]{:T(512)} compare(%i, %constant.1), direction=LT
}

%inner_body (p: (bf16[32,64], u32[])) -> (bf16[32,64], u32[]) {
  %p = (bf16[32,64]{1,0:T(8,128)(2,1)}, u32[]{:T(128)}) parameter(0)
  %part = bf16[32,64]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=0
  %i = u32[]{:T(128)} get-tuple-element(%p), index=1
  %send = (bf16[32,64]{1,0}, bf16[32,64]{1,0}, u32[], u32[]) collective-permute-start(%part), channel_id=9, \
source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %sent = bf16[32,64]{1,0} collective-permute-done(%send)
  %one = u32[] constant(1)
  %next = u32[] add(%i, %one)
  %after = u32[] add(%one, %next)
  ROOT %out = (bf16[32,64]{1,0}, u32[]) tuple(%sent, %after)
}

%start (x: bf16[16,8]) -> (bf16[16,8], bf16[64,8]) {
  %x = bf16[16,8]{1,0} parameter(0)
  %gather.1 = bf16[64,8]{1,0} all-gather(%x), channel_id=5, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %go = (bf16[16,8]{1,0}, bf16[64,8]{1,0}) custom-call(%gather.1), custom_call_target="AsyncCollectiveStart"
}

%middle (x: bf16[16,8], y: f32[4]) -> f32[4] {
  %x = bf16[16,8]{1,0} parameter(0)
  %gather.2 = bf16[64,8]{1,0} all-gather(%x), channel_id=5, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}, \
backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
  %y = f32[4]{0} parameter(1)
  ROOT %twice = f32[4]{0} add(%y, %y)
}

%end (x: bf16[16,8]) -> bf16[64,8] {
  %x = bf16[16,8]{1,0} parameter(0)
  %gather.3 = bf16[64,8]{1,0} all-gather(%x), channel_id=5, replica_groups=mesh['a'=1,'b'=4] {'b'}, dimensions={0}
  ROOT %done = bf16[64,8]{1,0} custom-call(%x, %gather.3), custom_call_target="AsyncCollectiveDone"
}

%summed_part (x: f32[64,16], i: s32[]) -> f32[16,16] {
  %x = f32[64,16]{1,0} parameter(0)
  %whole = f32[64,16]{1,0} all-reduce(%x), replica_groups=[1,4]<=[4], to_apply=%add
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %part = f32[16,16]{1,0} dynamic-slice(%whole, %i, %zero), dynamic_slice_sizes={16,16}
}

%outer_cond (p: (s32[], bf16[128,64], s32[])) -> pred[] {
  %p = (s32[], bf16[128,64]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %bound = s32[] get-tuple-element(%p), index=2
  ROOT %lt = pred[] compare(%i, %bound), direction=LT
}

%outer_body (p: (s32[], bf16[128,64], s32[])) -> (s32[], bf16[128,64], s32[]) {
  %p = (s32[], bf16[128,64]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = bf16[128,64]{1,0} get-tuple-element(%p), index=1
  %part = bf16[32,64]{1,0} slice(%x), slice={[0:32], [0:64]}
  %kernel = bf16[32,64]{1,0} custom-call(%part), custom_call_target="tpu_custom_call", frontend_attributes={x={
"several": "lines"
}}
  %gathered = bf16[128,64]{1,0} all-gather(%kernel), replica_groups={{0,1,2,3}}, dimensions={0}
  %zero = u32[] constant(0)
  %state = (bf16[32,64]{1,0}, u32[]) tuple(%part, %zero)
  %loop = (bf16[32,64]{1,0}, u32[]) while(%state), condition=%inner_cond, body=%inner_body
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %bound = s32[] get-tuple-element(%p), index=2
  ROOT %out = (s32[], bf16[128,64]{1,0}, s32[]) tuple(%next, %gathered, %bound)
}

ENTRY %main (x: bf16[128,64], y: bf16[16,8], z: f32[64,16]) -> f32[] {
  %x = bf16[128,64]{1,0} parameter(0)
  %y = bf16[16,8]{1,0} parameter(1)
  %z = f32[64,16]{1,0} parameter(2)
  %zero = s32[] constant(0)
  %five = s32[] constant(5)
  %copied = s32[] copy(%five)
  %state = (s32[], bf16[128,64]{1,0}, s32[]) tuple(%zero, %x, %copied)
  %loop = (s32[], bf16[128,64]{1,0}, s32[]) while(%state), condition=%outer_cond, body=%outer_body
  %begun = (bf16[16,8]{1,0}, bf16[64,8]{1,0}) fusion(%y), kind=kCustom, calls=%start
  %during = f32[4]{0} fusion(%y, %zero), kind=kOutput, calls=%middle
  %parts = ((f32[64,16]{1,0}), f32[16,16]{1,0}) reduce-scatter-start(%z), replica_groups={{0,1,2,3}}, dimensions={0}
  %ended = bf16[64,8]{1,0} fusion(%y), kind=kCustom, calls=%end
  %scattered = f32[16,16]{1,0} fusion(%z, %zero), kind=kCustom, calls=%summed_part
  %logits = f32[64,1000]{1,0} custom-call(%y), custom_call_target="something"
  %table = f32[1000,128]{1,0} custom-call(%y), custom_call_target="something"
  %tile = f32[8,1000]{1,0} custom-call(%y), custom_call_target="something"
  ROOT %loss = f32[] all-reduce(%zero), replica_groups={{0,1},{2,3}}, to_apply=%add
}
"""


def test_a_program_worked_by_hand():
    program = hlo.parse(BY_HAND)
    assert program.unknown_loops == 0
    assert (program.runs["outer_body"], program.runs["inner_body"]) == (5, 5 * 4)
    found = hlo.collectives(program, devices=4)
    assert found.bytes == {
        "all-gather": 5 * 3 * 32 * 64 * 2 + 3 * 16 * 8 * 2,
        "collective-permute": 20 * 32 * 64 * 2,
        "reduce-scatter": 2 * 3 * 16 * 16 * 4,
        "all-reduce": 4,  # two devices, 2 · ½ · 4 bytes
    }
    assert found.count == {"all-gather": 6, "collective-permute": 20, "reduce-scatter": 2, "all-reduce": 1}


def test_a_loop_that_cannot_be_followed_is_counted_once_and_said():
    program = hlo.parse(BY_HAND.replace("%copied = s32[] copy(%five)", "%copied = s32[] custom-call(%five)"))
    assert program.unknown_loops == 1
    assert program.runs["outer_body"] == 1


def test_arrays_as_large_as_logits():
    program = hlo.parse(BY_HAND)
    assert hlo.logits_sized(program, tokens=64, classes=1000, widths={128}) == ["f32[64,1000]"]
    assert hlo.logits_sized(program, tokens=256, classes=1000, widths={128}) == []


def test_products_of_one_device():
    """A dot; and a convolution over two batch axes, of which the second is written as a window with padding."""
    text = """
ENTRY %main (x: bf16[2,8,3,4], w: bf16[1,3,4,5], a: f32[6,7], b: f32[7,9]) -> f32[6,9] {
  %x = bf16[2,8,3,4]{3,2,1,0} parameter(0)
  %w = bf16[1,3,4,5]{3,2,1,0} parameter(1)
  %a = f32[6,7]{1,0} parameter(2)
  %b = f32[7,9]{1,0} parameter(3)
  %c = bf16[2,8,3,5]{3,2,1,0} convolution(%x, %w), window={size=1x3 pad=0_0x2_2 rhs_reversal=0x1}, \
dim_labels=b01f_01io->b01f
  ROOT %d = f32[6,9]{1,0} dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
    of_dot = 2 * 6 * 9 * 7
    taps = 1 + 2 + 3  # of three outputs, two of whose windows begin before the first element
    assert hlo.matmul_flops(hlo.parse(text)) == of_dot + 2 * (2 * 8 * 5) * 4 * taps


@pytest.mark.parametrize(
    ("dtype", "size"), [("bf16", 2), ("f32", 4), ("pred", 1), ("s8", 1), ("u32", 4), ("f8e4m3fn", 1), ("s4", 1)]
)
def test_bytes_of_dtypes(dtype, size):
    ((name, shape),) = hlo.arrays(f"{dtype}[3,5]{{1,0:T(8,128)}}")
    assert hlo.array_bytes(name, shape) == 15 * size


def test_a_real_program_on_eight_devices():
    """Layers whose weights are spread over all devices: gathered forward and backward, their gradients scattered."""
    mesh, layers, width, rows = make_mesh(ParallelConfig(data=1, fsdp=8)), 3, 64, 16
    spread, whole = NamedSharding(mesh, PartitionSpec(None, "fsdp")), NamedSharding(mesh, PartitionSpec("fsdp"))

    def loss(weights, x):
        def layer(x, weight):
            return jnp.tanh(x @ weight), None

        x, _ = jax.lax.scan(layer, jax.lax.with_sharding_constraint(x, whole), weights)
        return jnp.sum(x * x)

    step = functools.partial(jax.jit, out_shardings=spread)(jax.grad(loss))
    weights = jax.ShapeDtypeStruct((layers, width, width), jnp.float32, sharding=spread)
    batch = jax.ShapeDtypeStruct((rows, width), jnp.float32, sharding=whole)
    program = hlo.parse(step.lower(weights, batch).compile().as_text())
    assert program.unknown_loops == 0
    found = hlo.collectives(program, devices=8)
    products = 3 * layers  # forward, and for each of both factors backward
    assert hlo.matmul_flops(program) == products * 2 * (rows // 8) * width * width
    once = layers * width * width * 4 * 7 // 8
    assert found.bytes["all-gather"] == 2 * once
    # a CPU sums whole gradients and cuts its part out
    assert found.bytes.get("reduce-scatter", 0) + found.bytes.get("all-reduce", 0) in (once, 2 * once)
