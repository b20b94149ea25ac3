import json

table = {number: json.dumps({"id": number, "name": "item %d" % number}) for number in range(100000)}


def app(environ, start_response):
    body = table[int(environ["PATH_INFO"].strip("/") or 0)].encode()
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
