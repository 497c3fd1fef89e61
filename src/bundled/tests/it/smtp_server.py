"""A mail server for tests, on aiosmtpd: smtp_server.py MODE CERTIFICATE KEY

MODE is starttls, implicit or none. It prints its port, and then a line of JSON for each message. It takes
no mail before STARTTLS and a login where it has TLS. Standard input's end is its own.
"""

import asyncio
import json
import ssl
import sys
import warnings

from aiosmtpd.smtp import SMTP, AuthResult

# What a recipient's local part makes it say.
REFUSALS = {
    "nobody": "550 5.1.1 there is nobody of this name",
    "later": "451 4.7.1 come back later",
}


class Handler:
    async def handle_RCPT(self, server, session, envelope, address, options):
        refusal = REFUSALS.get(address.split("@")[0])
        if refusal:
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server, session, envelope):
        told = {
            "from": envelope.mail_from,
            "to": envelope.rcpt_tos,
            "content": envelope.content.decode("ascii"),
            "tls": session.ssl is not None,
            "login": session.authenticated,
        }
        print(json.dumps(told), flush=True)
        if "crash@" in envelope.rcpt_tos[0]:
            # The connection ends without an answer.
            server.transport.abort()
        return "250 2.0.0 queued as 7"


def authenticated(server, session, envelope, mechanism, data):
    fits = (data.login, data.password) == (b"ada", b"s3cr3t")
    # What is not handled is answered by the library.
    return AuthResult(success=fits, handled=fits)


async def main():
    mode, certificate, key = sys.argv[1:]
    warnings.simplefilter("ignore")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    options = {"hostname": "mail.example.com", "data_size_limit": 100_000}
    if mode != "none":
        options |= {"authenticator": authenticated, "auth_required": True}
    if mode == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    if mode == "implicit":
        # It cannot see TLS that has begun before it.
        options |= {"auth_require_tls": False}
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(Handler(), loop=loop, **options),
        "127.0.0.1",
        0,
        ssl=context if mode == "implicit" else None,
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    server.close()


asyncio.run(main())
