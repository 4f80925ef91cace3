import platform
import re

from caffe_lite.cli import device_query


def test_the_cpu_its_kernels_threads_and_openblas_are_shown(caffe_lite):
    result = caffe_lite("device_query")
    assert (result.status, result.err) == (0, "")
    shown = dict(re.split(r":\s+", line, maxsplit=1) for line in result.out.splitlines())
    assert list(shown) == ["CPU", "Kernels", "Threads", "Memory", "OpenBLAS", "GPUs"]
    assert re.match(r"built for (baseline|avx2|avx512) \(of baseline, avx2, avx512\)", shown["Kernels"])
    assert int(shown["Threads"]) >= 1
    assert float(shown["Memory"].removesuffix(" GiB")) > 0
    assert re.search(r"\d+\.\d+\.\d+", shown["OpenBLAS"])
    assert shown["GPUs"].startswith("none")


def test_a_gpu_is_refused(caffe_lite):
    result = caffe_lite("device_query", "-gpu=0")
    assert result.status == 1
    assert result.err.startswith("caffe-lite device_query: -gpu 0: this version does not run nets on a GPU yet")


def test_without_a_name_from_the_system_the_architecture_stands_for_the_cpu(monkeypatch):
    def no_file(*arguments, **options):
        raise FileNotFoundError

    monkeypatch.setattr("pathlib.Path.read_text", no_file)
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert device_query.cpu_model() == platform.machine()
