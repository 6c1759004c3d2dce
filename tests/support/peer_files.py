"""Files as other tools write them, made small: for what no real file in `tests/data/peers` shows."""

import json


def vllm_table(n=24, users=4, gap_s=0.02, tokens=30, **changes):
    """A result of `vllm bench serve --save-detailed`: `users` requests at a time, every gap alike."""
    free, starts = [100.0] * users, []
    for _ in range(n):
        user = min(range(users), key=free.__getitem__)
        starts.append(free[user])
        free[user] += 0.2 + tokens * gap_s
    return {
        "date": "20261126-120000",
        "endpoint_type": "openai-chat",
        "backend": "openai-chat",
        "model_id": "qwq-32b-awq",
        "num_prompts": n,
        "request_rate": "inf",
        "burstiness": 1.0,
        "max_concurrency": users,
        "completed": n,
        "request_throughput": 5.0,
        "mean_ttft_ms": 200.0,
        "input_lens": [20] * n,
        "output_lens": [tokens] * n,
        "ttfts": [0.2] * n,
        "itls": [[gap_s] * tokens] * n,
        "start_times": starts,
        "latencies": [0.2 + tokens * gap_s] * n,
        "errors": [""] * n,
        **changes,
    }


def write_vllm(path, **changes):
    path.write_text(json.dumps(vllm_table(**changes)))
    return path
