"""Model files through the C interface: valid ones run, damaged and hostile ones are refused with a message."""

import copy
import ctypes
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
import torch

from dyncp_kernels import _extension
from dyncp_kernels.engine import StreamEngine, folded_bytes, save_folded
from dyncp_kernels.nn import ConvFSENet, shift_for_budget

pytestmark = pytest.mark.skipif(not _extension.extension_loaded(), reason="the native extension is not built")

OK, INVALID_ARGUMENT, INVALID_MODEL, IO_ERROR = 0, 1, 2, 3


INFO_FIELDS = ("bins", "channels", "hidden", "blocks", "hidden_gates", "out_gates")
INFO_FIELDS += ("n_fft", "hop", "sample_rate", "latency")


class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int32) for name in INFO_FIELDS]


@pytest.fixture(scope="module")
def core():
    library = ctypes.CDLL(str(_extension.LIBRARY))
    library.dyncp_last_error.restype = ctypes.c_char_p
    library.dyncp_model_info.restype = Info
    library.dyncp_model_info.argtypes = [ctypes.c_void_p]
    library.dyncp_model_free.argtypes = [ctypes.c_void_p]
    library.dyncp_stream_free.argtypes = [ctypes.c_void_p]
    library.dyncp_stream_set_shift.argtypes = [ctypes.c_void_p, ctypes.c_float]
    library.dyncp_stream_set_budget.argtypes = [ctypes.c_void_p, ctypes.c_float]
    return library


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = {"channels": 8, "hidden": 12, "stacks": 1, "dilations": (1, 2), "n_fft": 32, "hop": 16, "bins": 17}
    return ConvFSENet(site="both", gate_hidden=2, **config).eval().fold()


def parse(core, content: bytes, precision: bytes = b"float32"):
    handle = ctypes.c_void_p()
    status = core.dyncp_model_parse(content, ctypes.c_int64(len(content)), precision, ctypes.byref(handle))
    message = core.dyncp_last_error().decode() if status else ""
    core.dyncp_model_free(handle)
    return status, message


def split(content: bytes):
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def join(header, data: bytes) -> bytes:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    return len(text).to_bytes(8, "little") + text + data


def test_c_interface_streams_what_python_streams(core, model, tmp_path):
    path = save_folded(model, tmp_path / "model.safetensors")
    handle, stream = ctypes.c_void_p(), ctypes.c_void_p()
    assert core.dyncp_model_load(str(path).encode(), b"float32", ctypes.byref(handle)) == OK
    info = core.dyncp_model_info(handle)
    assert (info.bins, info.blocks, info.hidden_gates, info.out_gates, info.latency) == (17, 2, 12, 8, 16)
    assert core.dyncp_stream_create(handle, ctypes.byref(stream)) == OK
    core.dyncp_model_free(handle)  # the stream keeps what it needs
    assert core.dyncp_stream_set_shift(stream, -0.9) == OK
    engine = StreamEngine(model, shift=-0.9)
    frames = torch.rand(6, 17)
    wanted, gates = engine.step_with_gates(frames)
    frame_type, hidden, out = ctypes.c_float * 17, (ctypes.c_uint8 * 12)(), (ctypes.c_uint8 * 8)()
    for _ in range(2):
        for t, frame in enumerate(frames):
            mask = frame_type()
            assert core.dyncp_stream_push_frame(stream, frame_type(*frame.tolist()), mask) == OK
            assert list(mask) == wanted[t].tolist()
            assert core.dyncp_stream_gates(stream, 1, hidden, out) == OK
            assert list(map(bool, hidden)) == gates[1].hidden[t].tolist()
            assert list(map(bool, out)) == gates[1].out[t].tolist()
        assert core.dyncp_stream_reset(stream) == OK
    many = ctypes.c_float * frames.numel()
    masks = many()
    count = ctypes.c_int64(len(frames))
    assert core.dyncp_stream_push_frames(stream, many(*frames.flatten().tolist()), count, masks) == OK
    assert list(masks) == wanted.flatten().tolist()
    assert core.dyncp_stream_reset(stream) == OK
    samples = torch.randn(5 * 16)
    enhanced = (ctypes.c_float * 80)(*samples.tolist())
    assert core.dyncp_stream_push_hop(stream, enhanced, enhanced) == OK
    rest = ctypes.byref(enhanced, 16 * ctypes.sizeof(ctypes.c_float))
    assert core.dyncp_stream_push_hops(stream, rest, ctypes.c_int64(4), rest) == OK
    engine.reset()
    assert list(enhanced) == engine.push_hop(samples).tolist()
    core.dyncp_stream_free(stream)


def test_a_budget_is_the_shift_that_python_takes_for_it(core, model):
    model = copy.deepcopy(model)
    model.calibration = [(0.1, -2.0), (0.4, -0.5), (0.9, 1.0)]
    content, frame = folded_bytes(model), torch.rand(17)
    handle, stream = ctypes.c_void_p(), ctypes.c_void_p()
    assert core.dyncp_model_parse(content, ctypes.c_int64(len(content)), b"float32", ctypes.byref(handle)) == OK
    assert core.dyncp_stream_create(handle, ctypes.byref(stream)) == OK
    for budget in (0.0, 0.125, 0.25, 0.375, 0.5, 0.75, 1.0):  # the same in float32 and float64
        assert core.dyncp_stream_reset(stream) == OK
        assert core.dyncp_stream_set_budget(stream, budget) == OK
        mask = (ctypes.c_float * 17)()
        assert core.dyncp_stream_push_frame(stream, (ctypes.c_float * 17)(*frame.tolist()), mask) == OK
        wanted = StreamEngine(model, shift=shift_for_budget(model.calibration, budget)).step(frame)
        assert list(mask) == wanted.tolist()
    for budget in (-0.1, 1.1, float("nan")):
        assert core.dyncp_stream_set_budget(stream, budget) == INVALID_ARGUMENT
    core.dyncp_stream_free(stream)
    core.dyncp_model_free(handle)


def test_a_budget_needs_a_calibration(core, model):
    content = folded_bytes(model)
    handle, stream = ctypes.c_void_p(), ctypes.c_void_p()
    assert core.dyncp_model_parse(content, ctypes.c_int64(len(content)), b"float32", ctypes.byref(handle)) == OK
    assert core.dyncp_stream_create(handle, ctypes.byref(stream)) == OK
    assert core.dyncp_stream_set_budget(stream, 0.5) == INVALID_ARGUMENT
    assert b"must have gates and a calibration" in core.dyncp_last_error()
    core.dyncp_stream_free(stream)
    core.dyncp_model_free(handle)


def test_many_streams_in_one_call_equal_each_of_them_alone(core, model):
    content, count, frames = folded_bytes(model), 11, 3
    handle, other = ctypes.c_void_p(), ctypes.c_void_p()
    for each in (handle, other):
        assert core.dyncp_model_parse(content, ctypes.c_int64(len(content)), b"float32", ctypes.byref(each)) == OK
    streams = (ctypes.c_void_p * count)()
    shifts = [0.2 * index - 1 for index in range(count)]
    for index, shift in enumerate(shifts):
        stream = ctypes.c_void_p()
        assert core.dyncp_stream_create(handle, ctypes.byref(stream)) == OK
        assert core.dyncp_stream_set_shift(stream, shift) == OK
        streams[index] = stream
    features, samples = torch.rand(count, frames, 17), torch.randn(count, frames * 16)

    def push(push_all, values):
        buffer = (ctypes.c_float * values.numel())(*values.flatten().tolist())
        assert push_all(streams, ctypes.c_int64(count), buffer, ctypes.c_int64(frames), buffer) == OK
        return torch.tensor(list(buffer)).view(values.shape)

    masks = push(core.dyncp_streams_push_frames, features)
    for stream in streams:
        assert core.dyncp_stream_reset(ctypes.c_void_p(stream)) == OK
    enhanced = push(core.dyncp_streams_push_hops, samples)
    for index, shift in enumerate(shifts):
        engine = StreamEngine(model, shift=shift)
        assert torch.equal(masks[index], engine.step(features[index]))
        engine.reset()
        assert torch.equal(enhanced[index], engine.push_hop(samples[index]))

    foreign = ctypes.c_void_p()
    assert core.dyncp_stream_create(other, ctypes.byref(foreign)) == OK
    buffer = (ctypes.c_float * 34)()
    none = ctypes.c_int64(0)
    assert core.dyncp_streams_push_frames(streams, none, buffer, none, buffer) == OK
    for pair in ((streams[0], streams[0]), (streams[0], foreign.value), (streams[0], None)):
        two, one = ctypes.c_int64(2), ctypes.c_int64(1)
        status = core.dyncp_streams_push_frames((ctypes.c_void_p * 2)(*pair), two, buffer, one, buffer)
        assert status == INVALID_ARGUMENT
        assert b"streams must be different ones of one model" in core.dyncp_last_error()
    assert core.dyncp_stream_push_frame(ctypes.c_void_p(streams[0]), buffer, buffer) == OK  # a refusal changes nothing
    for stream in (*streams, foreign.value):
        core.dyncp_stream_free(stream)
    for each in (handle, other):
        core.dyncp_model_free(each)


def test_wrong_arguments_give_a_status_and_a_message(core, model):
    content = folded_bytes(model)
    handle = ctypes.c_void_p()
    assert parse(core, content) == (OK, "")
    assert parse(core, content, b"float8")[0] == INVALID_ARGUMENT
    assert "float32, float16, bfloat16, int8 or int24 (got float8)" in parse(core, content, b"float8")[1]
    assert core.dyncp_model_load(None, b"float32", ctypes.byref(handle)) == INVALID_ARGUMENT
    assert core.dyncp_model_load(b"/nowhere/model", b"float32", ctypes.byref(handle)) == IO_ERROR
    assert b"cannot open /nowhere/model" in core.dyncp_last_error()
    assert core.dyncp_stream_create(None, ctypes.byref(handle)) == INVALID_ARGUMENT
    assert core.dyncp_stream_push_frame(None, None, None) == INVALID_ARGUMENT
    assert core.dyncp_stream_push_hops(None, None, ctypes.c_int64(2), None) == INVALID_ARGUMENT
    assert core.dyncp_stream_reset(None) == INVALID_ARGUMENT
    core.dyncp_model_free(None)
    core.dyncp_stream_free(None)


def test_every_truncation_is_refused(core, model):
    content = folded_bytes(model)
    header = 8 + int.from_bytes(content[:8], "little")
    for end in [*range(0, header + 16, 7), *range(header, len(content), 331), len(content) - 1]:
        assert parse(core, content[:end])[0] == INVALID_MODEL, end


def test_random_damage_never_crashes(core, model):
    content = folded_bytes(model)
    header = 8 + int.from_bytes(content[:8], "little")
    draw = random.Random(0)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(content)
        for _ in range(draw.randint(1, 4)):
            damaged[draw.randrange(header)] = draw.choice([0, 255, ord('"'), ord("{"), ord("9"), draw.randrange(256)])
        refused += parse(core, bytes(damaged))[0] == INVALID_MODEL
    assert refused > 1000


def changed(model, edit):
    header, data = split(folded_bytes(model))
    edit(header)
    return join(header, data)


def change_config(**values):
    def edit(header):
        config = json.loads(header["__metadata__"]["config"])
        header["__metadata__"]["config"] = json.dumps({**config, **values})

    return edit


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda h: h.pop("front.bias"), "front.bias is missing"),
        (lambda h: h["front.bias"].update(dtype="F16"), "front.bias must have dtype F32"),
        (lambda h: h["front.bias"].update(shape=[9]), "must have the shape"),
        (lambda h: h["front.bias"].update(data_offsets=[0, 1e18]), "must lie inside the file"),
        (lambda h: h["front.bias"].update(data_offsets=[-32, 0]), "must lie inside the file"),
        (lambda h: h["front.bias"].update(data_offsets=[64, 32]), "must lie inside the file"),
        (lambda h: h["front.bias"].update(data_offsets=[0.5, 32.5]), "must lie inside the file"),
        (lambda h: h["front.bias"].update(data_offsets=32), "two data_offsets"),
        (lambda h: h.update(extra=h["front.bias"]), "no tensors besides"),
        (lambda h: h.pop("__metadata__"), "must be a folded model"),
        (lambda h: h["__metadata__"].update(format="pt"), "must be a folded model"),
        (lambda h: h["__metadata__"].update(config="{"), "JSON must have a key"),
        (lambda h: h["__metadata__"].update(config="7"), "config must be a JSON object"),
        (change_config(hidden=2**40), "whole number as hidden"),
        (change_config(hidden=10**9), "hidden must be between"),
        (change_config(hidden=-1), "hidden must be between"),
        (change_config(channels="8"), "valid channels"),
        (change_config(kernel_size=1.5), "whole number as kernel_size"),
        (change_config(hop=0), "hop must be between"),
        (change_config(bins=18), "bins"),
        (change_config(dilations=[]), "dilations"),
        (change_config(dilations=[0, 1]), "dilations must be between"),
        (change_config(dilations=[10**9, 1]), "dilations must be between"),
        (change_config(stacks=10**6), "stacks"),
        (change_config(compression=-1), "compression"),
        (change_config(causal=False), "must be causal"),
        (change_config(gate_pooling="global"), "gate_pooling that streaming cannot run"),
        (change_config(gate_per="utterance"), "gate_per that streaming cannot run"),
        (change_config(site="left"), "site that streaming cannot run"),
        (lambda h: h["__metadata__"].update(calibration="[[0.1, 0], [0.1, 1]]"), "calibration must be pairs"),
        (lambda h: h["__metadata__"].update(calibration="[[0.1]]"), "calibration must be pairs"),
        (lambda h: h["__metadata__"].update(calibration="[0.1, 0.2]"), "calibration must be pairs"),
        (lambda h: h["__metadata__"].update(calibration='[["a", 0]]'), "calibration must be pairs"),
        (lambda h: h["__metadata__"].update(calibration="[[0.1, 1e999]]"), "JSON must have a value"),
        (lambda h: h["__metadata__"].update(calibration="{}"), "calibration must be pairs"),
        (lambda h: h["__metadata__"].update(calibration="["), "JSON"),
    ],
)
def test_hostile_headers_are_refused_by_name(core, model, edit, message):
    status, text = parse(core, changed(model, edit))
    assert status == INVALID_MODEL
    assert message in text


def test_hostile_json_is_refused(core, model):
    _, data = split(folded_bytes(model))
    for text in ("[" * 100000, '{"a":' * 100000, '{"a":1,"a":2}', '"' + "\\u12", "nul", "1e", "-", '{"a" 1}', "{}x"):
        assert parse(core, join(text, data))[0] == INVALID_MODEL, text[:20]
    huge = (2**63).to_bytes(8, "little") + b"{}"
    assert parse(core, huge)[0] == INVALID_MODEL
    assert "the header must lie inside the file" in parse(core, join("[" + "0," * 2**22 + "0]", data))[1]


def test_a_comma_as_decimal_point_of_the_process_changes_nothing(model, tmp_path):
    if shutil.which("localedef") is None:
        pytest.skip("localedef is needed to make a locale with a decimal comma")
    source = tmp_path / "comma.src"
    source.write_text('LC_NUMERIC\ndecimal_point ","\nthousands_sep "."\ngrouping 3;3\nEND LC_NUMERIC\n')
    # It warns of the categories that are not there.
    command = ["localedef", "-c", "-i", source, "-f", "ANSI_X3.4-1968", tmp_path / "comma"]
    subprocess.run(command, capture_output=True)
    path = save_folded(model, tmp_path / "model.safetensors")
    program = """
import locale, sys, torch
locale.setlocale(locale.LC_NUMERIC, "comma")
assert locale.localeconv()["decimal_point"] == ","
content = torch.frombuffer(bytearray(open(sys.argv[1], "rb").read()), dtype=torch.uint8)
import dyncp_kernels
packed = torch.ops.dyncp.stream_pack(content, "float32")
print(torch.ops.dyncp.stream_info(packed, torch.ops.dyncp.stream_state(packed, 0.25, 0.75)))
"""
    environment = os.environ | {"LOCPATH": str(tmp_path)}
    command = [sys.executable, "-c", program, str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["hidden_crossover"] == 0.25


def test_unaligned_tensors_are_read_correctly(core, model):
    header, data = split(folded_bytes(model))
    text = json.dumps(header)
    for pad in range(4):
        content = join(text + " " * (-len(text) % 4 + pad), data)
        packed = torch.ops.dyncp.stream_pack(torch.frombuffer(bytearray(content), dtype=torch.uint8), "float32")
        assert torch.equal(packed, StreamEngine(model).model.tensor)
