"""Which messages a rank encodes, and what it keeps of them."""

import torch

from crosspipe_ray.engine.message_codecs import MessageCodecs
from crosspipe_ray.engine.messages import MessageSpec
from crosspipe_ray.engine.tensor_codecs import decode, encode, new_residual
from crosspipe_ray.ops import Op, parse_op, receive_of
from tests.unit.builders import make_problem

SHAPE = (20, 30)


def codecs(kind: str = "int8") -> MessageCodecs:
    """Stages 0 and 1 on one rank, 2 on the next; the codec is on the link between these ranks."""
    link = {"src": "default", "dst": "default", "codec": {"kind": kind}}
    return MessageCodecs(make_problem((0, 0, 1), 2, links=[link]))


def message(seed: int = 0) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def received(both: MessageCodecs, send: Op, tensor: torch.Tensor) -> torch.Tensor:
    """Through one rank's end and the other's."""
    spec = MessageSpec.of(tensor)
    encoded = both.encode(send, tensor)
    assert MessageSpec.of(encoded) == both.posted(receive_of(send), spec)
    return both.decode(receive_of(send), encoded, spec)


def test_activations_are_only_rounded() -> None:
    send, ends = parse_op("1SEND_F0"), codecs()
    for _ in range(3):
        wanted = decode(encode(message(), "int8"), "int8", shape=SHAPE, dtype=torch.float32)
        assert torch.equal(received(ends, send, message()), wanted)


def test_gradients_carry_what_the_one_before_has_lost() -> None:
    ends, residual = codecs(), new_residual(message().numel(), torch.device("cpu"))
    for microbatch in (0, 1, 0, 1):  # two steps
        sent = message(microbatch)
        encoded = encode(sent, "int8", residual=residual)
        wanted = decode(encoded, "int8", shape=SHAPE, dtype=torch.float32)
        assert torch.equal(received(ends, parse_op(f"2SEND_B{microbatch}"), sent), wanted)


def test_a_rank_of_its_own_starts_without_residual() -> None:
    send = parse_op("2SEND_B0")
    first = codecs()
    received(first, send, message())
    assert not torch.equal(received(first, send, message()), received(codecs(), send, message()))


def test_gradients_in_bf16_are_only_rounded() -> None:
    ends, send = codecs("bf16"), parse_op("2SEND_B0")
    first = received(ends, send, message())
    assert torch.equal(first, received(ends, send, message()))
    assert torch.equal(first, message().bfloat16().float())


def test_what_does_not_cross_the_link_is_not_touched() -> None:
    tensor = message()
    assert codecs().encode(parse_op("0SEND_F0"), tensor) is tensor
    assert codecs().encode(parse_op("1SEND_B0"), tensor) is tensor
    assert MessageCodecs().encode(parse_op("1SEND_F0"), tensor) is tensor


def test_what_the_codec_is_not_for_is_not_touched() -> None:
    for tensor in (message().to(torch.int64), message().double(), torch.ones(4)):
        assert received(codecs(), parse_op("1SEND_F0"), tensor) is tensor
