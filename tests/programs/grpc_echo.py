"""A gRPC server and client on the public library, with no generated code: messages are bytes.

grpc_echo.py server PORT      serves until SIGTERM, then finishes calls in flight
grpc_echo.py client TARGET    calls every kind of method and fails if an answer is wrong
grpc_echo.py spread TARGET N  makes N calls on one channel and prints how many each server answered
"""

import collections
import os
import signal
import sys
import threading
import time
from concurrent import futures

import grpc

SERVICE = "echo.Echo"
NAME = f"{os.uname().nodename}-{os.getpid()}"


def unary(request, context):
    if request == b"fail":
        context.set_trailing_metadata((("why", "on request"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "told to fail")
    if request == b"slow":
        time.sleep(3)
    if request == b"name":
        return NAME.encode()
    metadata = dict(context.invocation_metadata())
    context.send_initial_metadata((("initial", metadata.get("asked", "")),))
    context.set_trailing_metadata((("trailing", "kept"), ("bytes-bin", b"\x00\xff")))
    return request


def server_stream(request, context):
    for number in range(int(request)):
        yield str(number).encode()


def client_stream(requests, context):
    return str(sum(len(request) for request in requests)).encode()


def both_stream(requests, context):
    for request in requests:
        yield request.upper()


def serve(port):
    kinds = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "ServerStream": grpc.unary_stream_rpc_method_handler(server_stream),
        "ClientStream": grpc.stream_unary_rpc_method_handler(client_stream),
        "BothStream": grpc.stream_stream_rpc_method_handler(both_stream),
    }
    server = grpc.server(
        futures.ThreadPoolExecutor(max_workers=16),
        options=[("grpc.max_receive_message_length", -1)],
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, kinds),))
    server.add_insecure_port(f"[::]:{port}")
    stopped = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())
    server.start()
    stopped.wait()
    server.stop(grace=5).wait()


def check(condition, what):
    if not condition:
        sys.exit(f"wrong: {what}")


def dial(target):
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    return grpc.insecure_channel(target, options=options)


def client(target):
    with dial(target) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Unary")
        answer, made = call.with_call(b"hello", timeout=10, metadata=(("asked", "yes"),))
        check(answer == b"hello", "unary answer")
        check(("initial", "yes") in made.initial_metadata(), "initial metadata")
        check(("trailing", "kept") in made.trailing_metadata(), "trailing metadata")
        check(("bytes-bin", b"\x00\xff") in made.trailing_metadata(), "binary metadata")

        large = os.urandom(8 * 1024 * 1024)
        check(call(large, timeout=30) == large, "8 MiB both ways")

        try:
            call(b"fail", timeout=10)
            check(False, "a failure")
        except grpc.RpcError as error:
            check(error.code() == grpc.StatusCode.FAILED_PRECONDITION, "status code")
            check(error.details() == "told to fail", "status message")
            check(("why", "on request") in error.trailing_metadata(), "metadata of a failure")

        try:
            call(b"slow", timeout=0.3)
            check(False, "a deadline")
        except grpc.RpcError as error:
            check(error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, "deadline")

        try:
            channel.unary_unary(f"/{SERVICE}/Missing")(b"", timeout=10)
            check(False, "a missing method")
        except grpc.RpcError as error:
            check(error.code() == grpc.StatusCode.UNIMPLEMENTED, "missing method")

        stream = channel.unary_stream(f"/{SERVICE}/ServerStream")
        numbers = [int(number) for number in stream(b"1000", timeout=30)]
        check(numbers == list(range(1000)), "server streaming")

        endless = stream(b"1000000000")
        next(endless)
        endless.cancel()

        parts = [bytes(1000)] * 500
        total = channel.stream_unary(f"/{SERVICE}/ClientStream")(iter(parts), timeout=30)
        check(total == b"500000", "client streaming")

        # Each message waits for the response to the previous one: no message may be buffered.
        turn = threading.Semaphore(1)

        def asked():
            for number in range(100):
                turn.acquire()
                yield f"message {number}".encode()

        answers = []
        for answer in channel.stream_stream(f"/{SERVICE}/BothStream")(asked(), timeout=30):
            answers.append(answer)
            turn.release()
        check(answers == [f"MESSAGE {n}".encode() for n in range(100)], "both streaming")
    print("every kind of call works")


def spread(target, calls):
    answered = collections.Counter()
    with dial(target) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Unary")
        for _ in range(calls):
            answered[call(b"name", timeout=10).decode()] += 1
    print(*answered.values())


if __name__ == "__main__":
    if sys.argv[1] == "server":
        serve(int(sys.argv[2]))
    elif sys.argv[1] == "client":
        client(sys.argv[2])
    else:
        spread(sys.argv[2], int(sys.argv[3]))
