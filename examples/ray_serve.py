"""Serve replicas of a model with Ray Serve: `python examples/ray_serve.py MODEL --replicas 2`.

Starts Ray on this machine, or joins the cluster that `--address` (or RAY_ADDRESS) names. Needs
`pip install "ray[serve]"`.
"""

import argparse
import os

import ray

from sidewinder.cli.options import add_engine_options, engine_options
from sidewinder.scale_out import ray_serve
from sidewinder.server.config import ServerConfig


def main() -> None:
    """Read the command line, start the replicas, serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Serve replicas of MODEL with Ray Serve.")
    add_engine_options(parser)
    group = parser.add_argument_group("scale-out")
    group.add_argument("--replicas", type=int, default=2, help="engines (default: 2)")
    group.add_argument("--num-cpus", type=float, help="per replica (default: one per rank)")
    group.add_argument("--num-gpus", type=float, default=0, help="per replica (with GPUs: tp)")
    group.add_argument("--host", default="127.0.0.1", help="address to listen on")
    group.add_argument("--port", type=int, default=8000)
    group.add_argument("--address", help="of a running Ray cluster (default: start Ray here)")
    group.add_argument("--machine-cpus", type=int, help="CPUs of a Ray that is started here")
    group.add_argument(
        "--object-store-bytes", type=int, default=100 << 20, help="of a Ray that is started here"
    )
    args = parser.parse_args()

    if args.address or os.environ.get("RAY_ADDRESS"):
        ray.init(address=args.address)
    else:
        ray.init(
            num_cpus=args.machine_cpus,
            object_store_memory=args.object_store_bytes,
            include_dashboard=False,
        )
    config = ServerConfig(
        host=args.host, port=args.port, api_key=os.environ.get("SIDEWINDER_API_KEY") or None
    )
    application = ray_serve.build(
        args.model,
        config,
        n_replicas=args.replicas,
        num_cpus=args.num_cpus,
        num_gpus=args.num_gpus,
        **engine_options(args),
    )
    ray_serve.run(application, config)
    ray_serve.wait_and_stop()
    ray.shutdown()


if __name__ == "__main__":
    main()
