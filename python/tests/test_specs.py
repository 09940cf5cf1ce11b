from __future__ import annotations

from pathlib import Path

import kvquant
import pytest


def test_specs_resolve_as_the_program_says() -> None:
    spec = kvquant.parse_spec("k=nuq4-0.5%,v=nuq3,sink=4,layers=0-1:fp16")
    assert (spec.key, spec.value, spec.sink, spec.recent, spec.block) == (
        "nuq4-0.5%",
        "nuq3",
        4,
        None,
        256,
    )
    assert (spec.key_of(1), spec.key_of(2)) == ("fp16", "nuq4-0.5%")
    assert kvquant.resolved(spec) == spec.resolved == kvquant.resolved(spec.text)
    assert kvquant.resolved(spec.resolved) == spec.resolved
    served = kvquant.with_windows(spec, "as-served")
    assert (served.sink, served.recent) == (4, 64)
    assert kvquant.spec_warnings("k=lnns")
    assert kvquant.spec_warnings("nuq4-1%") == []


def test_mistakes_come_with_their_position() -> None:
    with pytest.raises(ValueError, match=r'position 6: .*found "nu"'):
        kvquant.parse_spec("fp16,nu")
    with pytest.raises(ValueError, match="65"):
        kvquant.check_spec_fits("v=pca65", num_layers=2, head_dim=64)
    kvquant.check_spec_fits("v=pca64", num_layers=2, head_dim=64)


def test_bits_per_value() -> None:
    rows = {row["codec"]: row for row in kvquant.codec_table(head_dim=64, num_kv_heads=3)}
    assert rows["fp16"]["key_bits"] == 16
    assert 3 <= rows["nuq3"]["key_bits"] < rows["nuq3-1%"]["key_bits"] < 4
    assert kvquant.marginal_key_bits("nuq3-1%", 64) == rows["nuq3-1%"]["key_bits"]
    assert kvquant.marginal_value_bits("nuq4", 64, 3) == rows["nuq4"]["value_bits"]


def test_presets_that_come_with_it(tmp_path: Path) -> None:
    names = {(preset.model, preset.name) for preset in kvquant.list_presets()}
    assert len(names) >= 6
    preset = kvquant.get_preset_info("embedded", "balanced")
    assert Path(preset.calibration_path).is_file()
    assert preset.head_dim == 64
    assert preset.total_compression == preset.compression_ratio > 1
    assert preset.pareto[0].true_bits <= preset.pareto[-1].true_bits
    kvquant.save_preset(preset, tmp_path / "mine.json")
    again = kvquant.load_preset(tmp_path / "mine.json")
    assert (again.spec, again.to_json()) == (preset.spec, preset.to_json())
    assert kvquant.parse_preset(preset.to_json()).name == preset.name
    model = kvquant.Model.load("embedded", calibration=preset.calibration_path)
    out = kvquant.Session(model, preset.spec).generate("The lighthouse", max_tokens=3)
    assert len(out["tokens"]) == 3


def test_names_of_ranks_need_no_file() -> None:
    info = kvquant.get_preset_info("embedded", "r60-vonly")
    assert (info.spec, info.rank, info.target, info.calibration_path) == ("v=pca60", 60, "v", "")
    assert info.ppl_delta is None
    spec = kvquant.spec_of_preset_name("r96-kv-int8")
    assert spec is not None
    assert spec.value == "pca96+int8"
    assert kvquant.spec_of_preset_name("balanced") is None
    with pytest.raises(kvquant.IoError, match="no-such"):
        kvquant.get_preset_info("embedded", "no-such-preset")
    with pytest.raises(kvquant.FormatError, match="preset"):
        kvquant.parse_preset("{}")


def test_policies_are_chosen_by_memory(model: kvquant.Model) -> None:
    sizes = kvquant.PolicyModel(30, 3, 64, max_context=8192, weight_bytes=10**8)
    names = list(kvquant.KVPolicyName)
    assert [name.name for name in names] == ["default", "high_compression", "memory_emergency"]
    needed = [kvquant.policy_bytes(sizes, name, 4, 8192) for name in names]
    assert needed == sorted(needed, reverse=True)
    chosen = [kvquant.choose_policy_for_run(sizes, memory, 4, 8192) for memory in needed]
    assert chosen == names
    assert (
        kvquant.choose_policy_for_run(sizes, needed[0], 4, 8192, ppl_budget=0.03)
        == kvquant.KVPolicyName.default
    )
    with pytest.raises(ValueError, match="memory_emergency"):
        kvquant.choose_policy_for_run(sizes, 10**8, 4, 8192)
    assert kvquant.policy_bytes(model, "default", 1, 100) > model.weight_bytes


def test_what_a_policy_stores() -> None:
    sizes = kvquant.PolicyModel(30, 3, 64)
    config = kvquant.build_compressor_config_for_policy(sizes, "smollm2", "memory_emergency")
    assert config["policy"] == "memory_emergency"
    assert config["model_id"] == "smollm2"
    assert config["use_ln_nullspace_v"] is True
    kvquant.parse_spec(config["spec"])
    default = kvquant.build_compressor_config_for_policy(
        sizes, "smollm2", kvquant.KVPolicyName.default
    )
    assert default["use_ln_nullspace_v"] is False
    with pytest.raises(ValueError, match="high_compression"):
        kvquant.build_compressor_config_for_policy(sizes, "smollm2", "medium")


def test_policies_have_the_published_spelling_too() -> None:
    name = kvquant.KVPolicyName.MEMORY_EMERGENCY
    assert name is kvquant.KVPolicyName.memory_emergency
    config = kvquant.build_compressor_config_for_policy(
        kvquant.Model.load("embedded"), model_id="embedded", policy_name=name
    )
    assert config["use_ln_nullspace_v"]
    assert kvquant.choose_policy_for_run(
        kvquant.PolicyModel(2, 2, 64), memory=1 << 30, batch=1, max_context=128
    ) is kvquant.KVPolicyName.DEFAULT  # fmt: skip
