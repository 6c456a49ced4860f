"""A loopback stand-in of a CS-2 cluster: the management and appliance services, on the stubs that cerebras ships.

It takes a compile job through its calls, and a training job until that asks for systems to run on, which it has not;
and it refuses as real clusters do. It compiles nothing and computes nothing: what it proves is that our side asks in
the right order, sends what we say it sends, and ends cleanly.
"""

import threading
from concurrent import futures

import grpc
from cerebras.appliance.pb.framework import appliance_service_pb2 as appliance
from cerebras.appliance.pb.framework import appliance_service_pb2_grpc as appliance_grpc
from cerebras.appliance.pb.workflow.appliance.cluster_mgmt import cluster_pb2 as management
from cerebras.appliance.pb.workflow.appliance.cluster_mgmt import cluster_pb2_grpc as management_grpc
from cerebras.appliance.pb.workflow.appliance.cluster_mgmt.csctl import api_pb2 as csctl
from cerebras.appliance.pb.workflow.appliance.cluster_mgmt.csctl import api_pb2_grpc as csctl_grpc
from cerebras.appliance.pb.workflow.appliance.common.common_config_pb2 import ClusterDetails
from google.protobuf import symbol_database

VERSION, GITHASH = "2.10.0", "32008fd851"
SYSTEMS = ClusterDetails(tasks=[ClusterDetails.TaskInfo(task_type=ClusterDetails.TaskInfo.WSE)])
NOT_RUN = "this cluster has no system to run a job on"
LEASE = "wsjob-standin was cancelled: no heartbeat of the client for 60 s"


class Cluster:
    """The stand-in, listening on `address` inside its context.

    Args:
        fault: None, or how it refuses: "version", "capacity", "mount", "drop" (mid-compile), "heartbeat".

    Attributes:
        calls: method names in the order in which they came.
        requests: the last request of each method.
    """

    def __init__(self, fault: str | None = None):
        self.fault, self.calls, self.requests = fault, [], {}
        self._stop = threading.Event()

    def __enter__(self) -> "Cluster":
        self._server = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.max_receive_message_length", -1)])
        for file, name, add in (
            (management, "ClusterManagement", management_grpc.add_ClusterManagementServicer_to_server),
            (csctl, "CsCtlV1", csctl_grpc.add_CsCtlV1Servicer_to_server),
            (appliance, "Appliance", appliance_grpc.add_ApplianceServicer_to_server),
        ):
            add(_Service(self, file.DESCRIPTOR.services_by_name[name]), self._server)
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self.address = f"localhost:{port}"
        return self

    def __exit__(self, *_) -> None:
        self._stop.set()
        self._server.stop(None)

    # Answers by method name; what is not here answers with an empty message of its type.

    def GetServerVersions(self, request, context):
        version = "2.4.0+0123456789" if self.fault == "version" else f"{VERSION}+{GITHASH}"
        return management.GetServerVersionsResponse(versions=[management.ComponentVersion(name=1, version=version)])

    def InitCompileJob(self, request, context):
        if self.fault == "mount":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "mount dir /data/pubmed is not a cluster volume")
        return management.CompileJobResponse(
            job_id="wsjob-standin", workflow_id="wflow-standin", log_path="/logs", compile_dir_absolute_path="/cached"
        )

    def InitImageBuildJob(self, request, context):
        return management.ImageBuildResponse(job_id="image-standin", image_reference="standin/worker:1")

    def GetImageBuildJob(self, request, context):
        return management.ImageBuildResponse(
            job_id=request.job_id, image_reference=request.image_reference, image_ready=True
        )

    def InitExecuteJob(self, request, context):
        """Where a training job ends here: what comes after would need losses, and none are invented."""
        context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, NOT_RUN)

    def HeartbeatV2(self, requests, context):
        for _ in requests:
            if self.fault == "heartbeat":
                context.abort(grpc.StatusCode.NOT_FOUND, LEASE)
            yield management.HeartbeatResponse(is_ready=True, is_scheduled=True, message="job ready")

    def PollIngressV2(self, request, context):
        if self.fault == "capacity":
            yield management.GetIngressResponse(
                job_failed=True, message="no capacity: 1 system requested, 0 of 2 are healthy"
            )
            return
        yield management.GetIngressResponse(
            is_scheduled=True, is_ready=True, message="job ready", service_url=self.address, service_authority="standin"
        )

    def UnaryStart(self, request, context):
        return appliance.StartResponse(version_info={"version": VERSION, "githash": GITHASH})

    def UnaryCompile(self, request, context):
        if self.fault == "drop":
            threading.Thread(target=self._server.stop, args=(None,)).start()
            self._stop.wait(30)
        if self.fault == "heartbeat":
            context.abort(grpc.StatusCode.CANCELLED, LEASE)
        return appliance.CompileResponse(cache_compile_dir="/cached/standin", cluster_details=SYSTEMS)

    def UnaryMsgQueue(self, request, context):
        self._stop.wait(1)
        return appliance.MsgQueueResponse()


class _Service:
    """Routes every method of one service to `Cluster`, and keeps what was asked."""

    def __init__(self, cluster: Cluster, service):
        for method in service.methods:
            reply = symbol_database.Default().GetSymbol(method.output_type.full_name)
            setattr(self, method.name, self._route(cluster, method.name, reply))

    @staticmethod
    def _route(cluster: Cluster, name: str, reply):
        def answer(request, context):
            cluster.calls.append(name)
            if not hasattr(request, "__next__"):
                cluster.requests[name] = request
            own = getattr(cluster, name, None)
            return own(request, context) if own else reply()

        return answer
