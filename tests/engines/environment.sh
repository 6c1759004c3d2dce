# To be sourced from the top of the checkout: the runtimes of `make engines`, and what they need on a CPU.
export LOADTEST_VLLM="env VLLM_CPU_KVCACHE_SPACE=1 HF_HUB_OFFLINE=1 $PWD/.engines/vllm/bin/vllm"
export LOADTEST_SGLANG="env SGLANG_USE_CPU_ENGINE=1 OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1 $PWD/.engines/sglang/bin/python -m sglang.launch_server"
export VLLM_CPU_ARGUMENTS="--dtype bfloat16 --max-num-seqs 32 --enforce-eager"
export SGLANG_CPU_ARGUMENTS="--device cpu --attention-backend torch_native --sampling-backend pytorch --grammar-backend none --max-total-tokens 65536 --sleep-on-idle"
