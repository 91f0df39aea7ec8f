"""Properties of librdkafka: which ones walvec keeps to itself, which exist, which are secret.

Next: `client` merges what the user gave with what walvec needs.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping

from walvec.contracts.errors import ConfigError

# By walvec's own setting (or by the guarantee, where there is none): overriding them would break a promise.
OWNED = {
    "bootstrap.servers": "kafka.bootstrap_servers",
    "metadata.broker.list": "kafka.bootstrap_servers",
    "compression.type": "kafka.compression",
    "compression.codec": "kafka.compression",
    "group.protocol": "kafka.group_protocol",
    "message.max.bytes": "kafka.max_record_bytes",
    "acks": "",
    "request.required.acks": "",
    "enable.idempotence": "",
    "enable.gapless.guarantee": "",
    "transactional.id": "",
    "partitioner": "",
    "delivery.report.only.error": "",
    "allow.auto.create.topics": "",
    "group.id": "",
    "enable.auto.commit": "",
    "enable.auto.offset.store": "",
    "enable.partition.eof": "",
    "auto.offset.reset": "",
    "isolation.level": "",
    "partition.assignment.strategy": "",
}

# What people set; a misspelt name is compared with these.
_COMMON = """
batch.num.messages batch.size broker.address.family broker.address.ttl client.dns.lookup client.id client.rack
compression.level connections.max.idle.ms debug delivery.timeout.ms enable.sasl.oauthbearer.unsecure.jwt
enable.ssl.certificate.verification fetch.max.bytes fetch.message.max.bytes fetch.min.bytes fetch.wait.max.ms
group.instance.id group.remote.assignor heartbeat.interval.ms https.ca.location https.ca.pem linger.ms
log.connection.close log_level max.in.flight.requests.per.connection max.partition.fetch.bytes max.poll.interval.ms
message.timeout.ms metadata.max.age.ms metadata.recovery.strategy queue.buffering.max.kbytes
queue.buffering.max.messages queue.buffering.max.ms queued.max.messages.kbytes queued.min.messages
receive.message.max.bytes reconnect.backoff.max.ms reconnect.backoff.ms request.timeout.ms retry.backoff.max.ms
retry.backoff.ms sasl.kerberos.keytab sasl.kerberos.principal sasl.kerberos.service.name sasl.mechanism
sasl.mechanisms sasl.oauthbearer.client.id sasl.oauthbearer.client.secret sasl.oauthbearer.config
sasl.oauthbearer.extensions sasl.oauthbearer.method sasl.oauthbearer.scope sasl.oauthbearer.token.endpoint.url
sasl.password sasl.username security.protocol session.timeout.ms socket.connection.setup.timeout.ms
socket.keepalive.enable socket.receive.buffer.bytes socket.send.buffer.bytes socket.timeout.ms ssl.ca.location
ssl.ca.pem ssl.certificate.location ssl.certificate.pem ssl.cipher.suites ssl.crl.location ssl.curves.list
ssl.endpoint.identification.algorithm ssl.key.location ssl.key.password ssl.key.pem ssl.keystore.location
ssl.keystore.password ssl.providers ssl.sigalgs.list topic.metadata.refresh.interval.ms
"""
COMMON = tuple(_COMMON.split())

_SPELLED = {"log.level": "log_level"}  # the one name with an underscore
_SECRET = ("password", "secret", "passphrase", "pem", "jaas", "oauthbearer.config")


def spelled(names: Mapping[str, str]) -> dict[str, str]:
    """Properties by librdkafka's own names. Raises ConfigError for those that walvec sets itself."""
    found: dict[str, str] = {}
    for name, value in names.items():
        name = _SPELLED.get(name, name)
        if name in OWNED:
            own = OWNED[name]
            raise ConfigError(
                f"The Kafka property {name} is not free: walvec sets it itself.",
                f"Set {environment(own)} instead." if own else f"Leave out {environment('kafka.' + name)}.",
            )
        found[name] = value
    return found


def environment(setting: str) -> str:
    section, name = setting.split(".", 1)
    return f"WALVEC_{section.upper()}__{name.upper().replace('.', '_')}"


def unknown(name: str, settings: Iterable[str]) -> ConfigError:
    """The error for a property that librdkafka does not have; `settings`: walvec's own names of the section."""
    spelling = {known.replace("_", "."): known for known in settings} | {known: known for known in COMMON}
    close = difflib.get_close_matches(name, spelling, n=1, cutoff=0.6)
    return ConfigError(
        f"`kafka.{name.replace('.', '_')}` is neither a setting of walvec nor a property of librdkafka.",
        f"Did you mean `{spelling[close[0]]}`?" if close else "docs/settings.md lists the settings of this section.",
    )


def is_secret(name: str) -> bool:
    return any(part in name for part in _SECRET)
