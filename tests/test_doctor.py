"""The doctor on a CPU: what it finds, what it writes, and that the next patch heeds it."""

import json
import warnings

import pytest
import torch
from test_paths import TOLERANCE
from tiny import tiny_config, tiny_model
from torch.testing import assert_close

import hf_posenc
from hf_posenc import cli, verdict
from hf_posenc.attention import distance, regional
from hf_posenc.attention.choice import Prospect, choose
from hf_posenc.doctor import checks
from hf_posenc.doctor import costs as doctor_costs
from hf_posenc.doctor.rows import LENGTH, layouts
from hf_posenc.encodings import Geometry


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_POSENC_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def doctor(tmp_path):
    """Runs the command on a CPU and returns its exit status and what it wrote; `family` is that of the model."""

    def run(*words, family="llama"):
        tiny_config(family).save_pretrained(tmp_path / family)
        written = tmp_path / "doctor.json"
        given = ["--device", "cpu", "--model", str(tmp_path / family), "--lengths", "64", "--output", str(written), *words]
        status = cli.main(["doctor", *given])
        return status, json.loads(written.read_text()) if written.is_file() else {}

    return run


def broken(call):
    return distance_attention(call) + 1e-2


distance_attention = distance.attention


def logits(model):
    with torch.no_grad():
        return model(torch.arange(3, 27)[None]).logits


def test_a_sound_machine(doctor, capsys):
    status, found = doctor("--encoding", "alibi", "rerope", "shaw", "yarn")
    assert status == 0 and found["passed"]
    out = capsys.readouterr().out
    assert "nothing is to be avoided" in out and not verdict.file("cpu").exists()
    assert {check["path"] for check in found["kernels"]} == {"table", "regions", "blocks", "stock"}
    assert {(check["rows"], check["what"]) for check in found["kernels"]} == {
        *((rows, what) for rows in ("plain", "padded") for what in ("forward", "backward", "decoding")),
        *(("packed", what) for what in ("forward", "backward")),
    }
    assert all(0 <= check["error"] <= 1 and not check["failure"] and check["why"] for check in found["kernels"])
    assert (found["dtype"], found["machine"]["device"]) == ("float32", verdict.name_of(torch.device("cpu")))
    timed = {check["encoding"] for check in found["kernels"] if check["path"] != "stock"}
    assert set(found["costs"]["64"]) == {"stock", *timed}
    assert all(cost["seconds"] > 0 and cost["peak"] > 0 for cost in found["costs"]["64"].values())


@pytest.mark.parametrize("family", ["gemma2", "gpt_oss", "mistral"])
def test_windows_softcaps_and_sinks(doctor, family):
    status, found = doctor("--encoding", "t5", "rerope", family=family)
    assert status == 0
    assert "window" in {check["rows"] for check in found["kernels"]}
    assert {check["path"] for check in found["kernels"]} == ({"table", "regions"} if family == "mistral" else {"dense"})


def test_half_precision(doctor):
    status, found = doctor("--encoding", "alibi", "yarn:factor=8", "--dtype", "bfloat16")
    assert status == 0 and found["dtype"] == "bfloat16"
    assert max(check["error"] for check in found["kernels"]) > 1e-3
    assert {check["encoding"] for check in found["kernels"]} == {"alibi", "yarn:factor=8"}


def test_a_wrong_path_is_found_and_avoided_until_it_is_right_again(doctor, monkeypatch, capsys):
    right = logits(hf_posenc.patch(tiny_model("llama"), "alibi"))
    monkeypatch.setattr(distance, "attention", broken)
    assert not torch.allclose(logits(hf_posenc.patch(tiny_model("llama"), "alibi")), right, atol=1e-4)

    status, found = doctor("--encoding", "alibi", "rerope")
    assert status == 1 and not found["passed"]
    failed = [check for check in found["kernels"] if check["failure"]]
    assert {(check["encoding"], check["path"]) for check in failed} == {("alibi", "table")} and len(failed) == 8
    assert all(check["failure"].startswith("off by ") and check["error"] > 1 for check in failed)
    assert "alibi" not in found["costs"]["64"] and "rerope" in found["costs"]["64"]
    assert "FAILED alibi, table: forward, plain: off by" in capsys.readouterr().out
    assert verdict.avoided("alibi", "cpu") == {"table"} and not verdict.avoided("rerope", "cpu")

    with pytest.warns(UserWarning, match=r"'alibi' goes by query block.*table: forward, plain: off by") as caught:
        model = hf_posenc.patch(tiny_model("llama"), "alibi")
    assert len(caught) == 1 and caught[0].filename == __file__
    assert all(layer.self_attn.posenc_site.avoided == {"table"} for layer in model.model.layers)
    assert_close(logits(model), right, atol=2e-5, rtol=2e-4)

    monkeypatch.setattr(distance, "attention", distance_attention)
    status, found = doctor("--encoding", "alibi")
    assert status == 0 and {check["path"] for check in found["kernels"]} == {"table"}, "an old verdict does not stand in the way"
    assert not verdict.file("cpu").exists()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf_posenc.patch(model, "alibi")


def test_a_path_that_raises_is_a_line_and_the_others_are_examined(doctor, monkeypatch):
    right = logits(hf_posenc.patch(tiny_model("llama"), "rerope", window=3))

    def raises(*_):
        raise RuntimeError("no such kernel\nand more of it")

    monkeypatch.setattr(regional, "attention", raises)
    status, found = doctor("--encoding", "rerope", "shaw")
    assert status == 1
    failures = {(check["encoding"], check["failure"]) for check in found["kernels"]}
    assert failures == {("rerope", "RuntimeError: no such kernel"), ("shaw", "")}
    with pytest.warns(UserWarning, match="no such kernel"):
        assert_close(logits(hf_posenc.patch(tiny_model("llama"), "rerope", window=3)), right, atol=2e-5, rtol=2e-4)


def test_a_path_that_raises_at_some_length_only(doctor, monkeypatch):
    def raises(call):
        if call.layout.num_queries == 64:
            raise RuntimeError("out of shared memory")
        return distance_attention(call)

    monkeypatch.setattr(distance, "attention", raises)
    status, found = doctor("--encoding", "alibi")
    assert status == 1 and set(found["costs"]["64"]) == {"stock"}
    assert verdict.failures("cpu") == {"alibi": {"table": "forward, 64 tokens: RuntimeError: out of shared memory"}}


def test_numbers_that_are_none(doctor, monkeypatch):
    monkeypatch.setattr(distance, "attention", lambda call: distance_attention(call) * torch.nan)
    status, found = doctor("--encoding", "alibi")
    assert status == 1
    assert {(check["error"], check["failure"]) for check in found["kernels"]} == {(None, "the result has numbers that are not finite")}


def test_what_is_kept(doctor, monkeypatch, capsys):
    verdict.keep("cpu", ["t5"], {"t5": {"table": "wrong"}})
    monkeypatch.setattr(distance, "attention", broken)
    assert doctor("--encoding", "alibi", "--keep", "false")[0] == 1
    assert set(verdict.failures("cpu")) == {"t5"}
    assert doctor("--encoding", "alibi")[0] == 1
    assert set(verdict.failures("cpu")) == {"alibi", "t5"}, "what was not examined stays"
    assert cli.main(["doctor", "--device", "cpu", "--forget"]) == 0
    assert "is deleted" in capsys.readouterr().out and verdict.failures("cpu") == {}
    assert cli.main(["doctor", "--device", "cpu", "--forget"]) == 0
    assert "was not there" in capsys.readouterr().out


@pytest.mark.parametrize("text", ["", "{", "[]", '{"failed": 3}', '{"failed": {"alibi": "table"}}'])
def test_an_unreadable_verdict_is_none(text):
    verdict.file("cpu").parent.mkdir(parents=True)
    verdict.file("cpu").write_text(text)
    assert verdict.failures("cpu") == {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hf_posenc.patch(tiny_model("llama"), "alibi")


def test_a_verdict_says_whose_it_is():
    file = verdict.keep("cpu", [], {"alibi": {"table": "wrong"}})
    assert json.loads(file.read_text()) == {**verdict.machine("cpu"), "failed": {"alibi": {"table": "wrong"}}}
    assert torch.__version__ in file.name and hf_posenc.__version__ in file.name
    verdict.keep("cpu", [], {"alibi": {"blocks": "wrong", "dense": "wrong"}})
    assert verdict.avoided("alibi", "cpu") == frozenset(), "there is nothing to take instead"
    assert verdict.failures("meta") == {}


@pytest.mark.parametrize(("name", "place", "path"), [("alibi", "cpu", "table"), ("rerope", "cpu", "regions"), ("alibi", "cuda", "flex")])
def test_every_path_has_one_to_fall_back_on(name, place, path):
    encoding = hf_posenc.create(name, Geometry(64, 4, 2, 16, max_positions=100))
    asked = {"backend": "sdpa", "place": place, "dtype": torch.float32, "regional": name == "rerope"}
    assert choose(encoding, Prospect(**asked)).path == path
    avoiding = choose(encoding, Prospect(**asked, avoided=frozenset({path})))
    assert avoiding.path == "blocks" and repr(path) in avoiding.why


def test_what_does_not_fit_is_left_out(doctor, monkeypatch, capsys):
    monkeypatch.setattr(doctor_costs, "free_memory", lambda device: 1000)
    status, found = doctor("--encoding", "alibi")
    assert status == 0 and found["costs"] == {"64": {}}
    assert "64 tokens are left out" in capsys.readouterr().out


def test_too_little_memory_is_no_verdict(doctor, monkeypatch, capsys):
    def full(*_):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(distance, "attention", full)
    assert doctor("--encoding", "alibi")[0] == 1
    assert "error: cpu has too little free memory" in capsys.readouterr().err and not verdict.file("cpu").exists()


def test_a_device_that_stops_answering_ends_the_examination(doctor, monkeypatch):
    monkeypatch.setattr(distance, "attention", lambda call: 1 / 0)
    monkeypatch.setattr(checks, "answers", lambda device: False)
    status, found = doctor("--encoding", "alibi", "rerope")
    assert status == 1
    assert [check["failure"] for check in found["kernels"] if check["encoding"] == "alibi"] == ["ZeroDivisionError: division by zero"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoding", "alibbi"], "Did you mean 'alibi'"),
        (["--encoding", "yarn:fctor=4"], "has no option 'fctor'"),
        (["--lengths", "64", "0"], "--lengths must be an integer of at least 1"),
        (["--device", "nowhere"], "--device 'nowhere' cannot be used here"),
        (["--model", "no/such/path/at/all"], "no/such/path"),
        (["--output", "/proc/nothing/doctor.json"], "cannot write to --output"),
        (["--dtype", "int8"], "int8"),
        (["--lenghts", "64"], "Did you mean '--lengths'"),
    ],
)
def test_mistakes(doctor, capsys, words, message):
    assert doctor(*words)[0] == 1
    err = capsys.readouterr().err
    assert message in err and "Traceback" not in err and "examining" not in err


def test_the_tolerances_are_those_of_the_tests():
    assert checks.TOLERANCE == TOLERANCE


def test_the_layouts():
    plain, padded, packed, window = layouts(1000)
    assert LENGTH % 128
    assert plain.seen.tril().equal(plain.seen) and int(plain.seen.sum()) == 2 * LENGTH * (LENGTH + 1) // 2
    assert padded.real.sum(-1).tolist() == [LENGTH - 77, LENGTH] and padded.pos.amax(-1).tolist() == [LENGTH - 78, LENGTH - 1]
    assert (packed.pos == 0).sum(-1).tolist() == [2, 3] and packed.real.all()
    assert not packed.seen[0, 0, 150, 119] and packed.seen[0, 0, 150, 120] and packed.seen[1, 0, 150, 119]
    assert window.seen.sum(-1).max() == LENGTH // 3
    assert len([*layouts(None)]) == 3


@pytest.mark.parametrize("device", ["xla", "hpu"])
def test_a_device_that_pytorch_has_no_module_for(device):
    assert verdict.name_of(torch.device(device)) == device
    assert verdict.avoided("alibi", device) == frozenset()
