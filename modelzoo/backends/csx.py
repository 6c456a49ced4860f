"""The CS-2: the only file that names cerebras.pytorch. Here: whether an appliance can be reached from this machine."""

import importlib.util
import os
import socket

from modelzoo.config.trainer import Backend as Config

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def missing(config: Config) -> str | None:
    """Why no CS-2 can be used from here, or None if one answers.

    Looks for an address (config, then $CSCONFIG_PATH or /opt/cerebras/config_v2, then a Kubernetes service account),
    tries a short TCP connection where there is one, and only then for the client library.
    """
    address = config.mgmt_address
    config_file = os.environ.get("CSCONFIG_PATH", "/opt/cerebras/config_v2")
    in_cluster = bool(os.environ.get("KUBERNETES_SERVICE_HOST")) and os.path.exists(TOKEN)
    if not address and not os.path.exists(config_file) and not in_cluster:
        return f"no cluster is configured (no mgmt_address, no {config_file})"
    if address:
        host, _, port = address.rpartition(":")
        try:
            with socket.create_connection((host or address, int(port) if port.isdigit() else 443), timeout=1.0):
                pass
        except OSError as e:
            return f"the cluster at {address} does not answer ({e.strerror or e})"
    if importlib.util.find_spec("cerebras") is None:
        return "cerebras_pytorch is not installed in this environment"
    return None
