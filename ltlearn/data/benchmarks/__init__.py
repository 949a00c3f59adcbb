"""Published long-tailed benchmarks and the balanced sets that long-tailed ones are cut from."""

from ltlearn.data.benchmarks.check import BenchmarkReport, Finding, check_benchmark
from ltlearn.data.benchmarks.download import download_benchmark
from ltlearn.data.benchmarks.facts import BENCHMARKS, IMAGENET_STATS, LISTED, Benchmark, Download
from ltlearn.data.benchmarks.instructions import how_to_get
from ltlearn.data.benchmarks.read import load_benchmark, load_benchmark_parts

__all__ = [
    "BENCHMARKS",
    "Benchmark",
    "BenchmarkReport",
    "Download",
    "Finding",
    "IMAGENET_STATS",
    "LISTED",
    "check_benchmark",
    "download_benchmark",
    "how_to_get",
    "load_benchmark",
    "load_benchmark_parts",
]
