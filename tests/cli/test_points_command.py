"""``fastprobe points``."""


def test_identities_are_listed(run, model_folder):
    code, out, _ = run("points", model_folder)

    assert code == 0
    assert out.count("holds") == 2 * 4 + 1
    assert "norm(attn_out + resid_pre) = resid_mid" in out
    assert max(map(len, out.splitlines())) <= 80
