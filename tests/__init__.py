"""The tests: `bash scripts/run_tests.sh`, or `python -m pytest` where requirements-dev.txt is installed."""
