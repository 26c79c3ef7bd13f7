"""The reference decoder as a receiver: OTLP logs by gRPC and HTTP/protobuf, one JSON line per log record.

A line is on disk before its request is acknowledged. Prints `listening GRPC_PORT HTTP_PORT` once both are open.
"""

import argparse
import concurrent.futures
import gzip
import http.server
import json
import os
import ssl
import threading

import grpc
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2 as service
from opentelemetry.proto.collector.logs.v1 import logs_service_pb2_grpc as service_grpc


def plain(value):
    which = value.WhichOneof("value")
    if which == "array_value":
        return [plain(one) for one in value.array_value.values]
    if which not in ("string_value", "int_value", "bool_value"):
        return {"unexpected": which}
    return getattr(value, which)


def pairs(attributes):
    return [[one.key, plain(one.value)] for one in attributes]


class Log:
    def __init__(self, path):
        self.file = open(path, "a", encoding="utf-8")
        self.lock = threading.Lock()

    def take(self, via, headers, request):
        lines = []
        for of_resource in request.resource_logs:
            for of_scope in of_resource.scope_logs:
                for record in of_scope.log_records:
                    lines.append({
                        "via": via,
                        "headers": headers,
                        "resource": pairs(of_resource.resource.attributes),
                        "scope": of_scope.scope.name,
                        "event_name": record.event_name,
                        "time": record.time_unix_nano,
                        "observed": record.observed_time_unix_nano,
                        "severity_number": record.severity_number,
                        "severity_text": record.severity_text,
                        "body": plain(record.body),
                        "attributes": pairs(record.attributes),
                    })
        with self.lock:
            for line in lines:
                self.file.write(json.dumps(line) + "\n")
            self.file.flush()
            os.fsync(self.file.fileno())


def serve_grpc(log, arguments):
    class Servicer(service_grpc.LogsServiceServicer):
        def Export(self, request, context):
            headers = {key: value for key, value in context.invocation_metadata() if isinstance(value, str)}
            log.take("grpc", headers, request)
            return service.ExportLogsServiceResponse()

    server = grpc.server(concurrent.futures.ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    service_grpc.add_LogsServiceServicer_to_server(Servicer(), server)
    address = f"127.0.0.1:{arguments.grpc}"
    if arguments.cert:
        read = lambda path: open(path, "rb").read()
        roots = read(arguments.client_ca) if arguments.client_ca else None
        pair = [(read(arguments.key), read(arguments.cert))]
        credentials = grpc.ssl_server_credentials(pair, roots, require_client_auth=roots is not None)
        port = server.add_secure_port(address, credentials)
    else:
        port = server.add_insecure_port(address)
    server.start()
    return server, port


def serve_http(log, arguments):
    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            right = self.path == "/v1/logs" and self.headers["content-type"] == "application/x-protobuf"
            if right:
                headers = {key.lower(): value for key, value in self.headers.items()}
                log.take("http", headers, service.ExportLogsServiceRequest.FromString(body))
            answer = service.ExportLogsServiceResponse().SerializeToString() if right else b""
            self.send_response(200 if right else 404)
            self.send_header("content-type", "application/x-protobuf")
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", arguments.http), Handler)
    if arguments.cert:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments.cert, arguments.key)
        if arguments.client_ca:
            context.load_verify_locations(arguments.client_ca)
            context.verify_mode = ssl.CERT_REQUIRED
        # The handshake belongs to the connection's own thread, not to the one that accepts.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server.server_address[1]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", required=True)
    parser.add_argument("--grpc", type=int, default=0)
    parser.add_argument("--http", type=int, default=0)
    for name in ("--cert", "--key", "--client-ca"):
        parser.add_argument(name)
    arguments = parser.parse_args()
    log = Log(arguments.out)
    server, grpc_port = serve_grpc(log, arguments)
    http_port = serve_http(log, arguments)
    print(f"listening {grpc_port} {http_port}", flush=True)
    server.wait_for_termination()


main()
