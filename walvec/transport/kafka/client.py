"""One Kafka cluster as walvec talks to it: configuration for both clients, calls beside the event loop, errors.

Law: what a user passes reaches librdkafka unchanged and aiokafka in its own spelling; an error names what to check and
never a secret. Next: `admin`, `producer`, `reading`, `consumer`.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import ssl
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from walvec.contracts.errors import ConfigError, LogUnavailable, NotFound, WalvecError
from walvec.runtime.settings import KafkaSettings
from walvec.transport.kafka import properties

_log = logging.getLogger(__name__)
T = TypeVar("T")

ANSWER_SECONDS = 5.0  # how long a question may take before it counts as unanswered
_BATCH_BYTES = 1_000_000
_GONE = (
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.UNKNOWN_TOPIC_ID,
    KafkaError._UNKNOWN_TOPIC,
    KafkaError._UNKNOWN_PARTITION,
)
_LOGIN = (KafkaError._AUTHENTICATION, KafkaError.SASL_AUTHENTICATION_FAILED)
_FORBIDDEN = (
    KafkaError.TOPIC_AUTHORIZATION_FAILED,
    KafkaError.GROUP_AUTHORIZATION_FAILED,
    KafkaError.CLUSTER_AUTHORIZATION_FAILED,
)
_SILENT = (
    KafkaError._TIMED_OUT,
    KafkaError._MSG_TIMED_OUT,
    KafkaError._TRANSPORT,
    KafkaError._ALL_BROKERS_DOWN,
    KafkaError._RESOLVE,
)
_UNKNOWN_PROPERTY = re.compile(r'No such configuration property: "([^"]*)"')


def kafka_error(error: KafkaException | KafkaError) -> KafkaError:
    if isinstance(error, KafkaException):
        found: KafkaError = error.args[0]
        return found
    return error


def missing(topic: str) -> NotFound:
    return NotFound(f"There is no topic {topic} in the log.", "Apply its vector table again, or check the name.")


def translate(error: KafkaException | KafkaError, topic: str = "", trouble: WalvecError | None = None) -> WalvecError:
    """Kafka's error as one of ours. `trouble`: what the connection was last heard to suffer from."""
    error = kafka_error(error)
    code = error.code()
    if code in _GONE:
        return missing(topic) if topic else NotFound(f"Kafka answers: {error.str()}.", "Check the topic's name.")
    if code in _LOGIN:
        return LogUnavailable(
            "Kafka refuses the login.",
            "Check WALVEC_KAFKA__SASL_MECHANISM, WALVEC_KAFKA__SASL_USERNAME and WALVEC_KAFKA__SASL_PASSWORD.",
        )
    if code == KafkaError._SSL:
        return LogUnavailable(
            f"The TLS connection to Kafka fails: {_reason(error)}.",
            "Check WALVEC_KAFKA__SECURITY_PROTOCOL and WALVEC_KAFKA__SSL_CA_LOCATION.",
        )
    if code in _FORBIDDEN:
        what = f" for {topic}" if topic else ""
        return LogUnavailable(
            f"Kafka does not allow this{what}: {error.str()}.",
            "Grant it: kafka-acls.sh --bootstrap-server … --add --allow-principal User:… --operation All "
            "--resource-pattern-type prefixed --topic walvec. --group walvec.",
        )
    if code in _SILENT:
        return trouble or LogUnavailable(
            f"Kafka does not answer: {_reason(error)}.",
            "Check that the brokers run, and WALVEC_KAFKA__BOOTSTRAP_SERVERS; it goes on by itself.",
        )
    return LogUnavailable(f"Kafka answers: {_reason(error)}.", "It is tried again; the brokers' log says more.")


def _reason(error: KafkaError) -> str:
    return " ".join(str(error.str()).split()).rstrip(".")


class _Chatter:
    """librdkafka's own log lines. What matters in them also comes as an error, so they are for debugging."""

    def log(self, level: int, text: str, *values: object) -> None:
        _log.debug("librdkafka says", extra={"action": "kafka_client", "reason": text % values if values else text})


class KafkaClient:
    def __init__(self, settings: KafkaSettings) -> None:
        """Raises ConfigError; talks to nobody yet."""
        self.settings = settings
        given = {name: value.get_secret_value() for name, value in settings.properties.items()}
        self._given = properties.spelled(given)
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="walvec-kafka")
        self._trouble: WalvecError | None = None
        self._told = ""
        self._admin: AdminClient = self.make(AdminClient, self.common())

    # ---- configuration

    def common(self) -> dict[str, Any]:
        """For every librdkafka instance."""
        return {
            "client.id": f"walvec-{socket.gethostname()}",
            "topic.metadata.refresh.interval.ms": 10_000,  # grown topics and moved leaders are noticed by this
            # a broker that hangs with its connections open is asked for leaders, too: it must not hold the answer long
            "socket.timeout.ms": 10_000,
            "reconnect.backoff.max.ms": 2_000,
            "socket.keepalive.enable": True,
            "log.connection.close": False,
            **self._given,
            "bootstrap.servers": self.settings.bootstrap_servers,
            "allow.auto.create.topics": False,  # a misspelt name must not become a topic
            "logger": _Chatter(),
            "error_cb": self.heard,
        }

    def producer_config(self, max_bytes: int) -> dict[str, Any]:
        """For topics whose max.message.bytes is `max_bytes`."""
        return {
            "linger.ms": 1,
            "delivery.timeout.ms": 60_000,
            "request.timeout.ms": 10_000,  # a broker that hangs is given up while its successor is elected
            "topic.metadata.propagation.max.ms": 5_000,  # a deleted topic is said to be gone; a new one was waited for
            "queue.buffering.max.kbytes": 64 * 1024,
            "queue.buffering.max.messages": 500_000,
            "batch.size": min(_BATCH_BYTES, max_bytes),
            **self.common(),
            "enable.idempotence": True,
            "acks": "all",
            "compression.type": self.settings.compression,
            "message.max.bytes": max_bytes,
            # crc32 of the key, as contracts.keys.partition_of; no key = partition 0
            "partitioner": "consistent",
        }

    def consumer_config(self, group: str) -> dict[str, Any]:
        """For a member of a group; the consumer adds its callbacks and its protocol."""
        return {
            **self.common(),
            "group.id": group,
            "enable.auto.commit": False,
            "enable.auto.offset.store": False,
            "auto.offset.reset": "error",
            "isolation.level": "read_committed",
        }

    def reader_config(self) -> dict[str, Any]:
        """Keyword arguments of an aiokafka client. Raises ConfigError for what aiokafka cannot do."""
        return {
            "bootstrap_servers": self.settings.bootstrap_servers,
            "client_id": self._given.get("client.id", f"walvec-{socket.gethostname()}"),
            "request_timeout_ms": int(ANSWER_SECONDS * 1000),
            **_security(self._given),
        }

    def make(self, kind: Callable[[dict[str, Any]], T], config: dict[str, Any]) -> T:
        """An instance of librdkafka. Raises ConfigError for properties it does not take."""
        try:
            return kind(config)
        except KafkaException as error:
            raise self.misconfigured(kafka_error(error)) from None
        except (TypeError, ValueError) as error:
            reason = self.scrub(str(error))
            raise ConfigError(f"A Kafka property is wrong: {reason}.", "docs/settings.md lists them.") from None

    def misconfigured(self, error: KafkaError) -> ConfigError:
        reason = self.scrub(_reason(error))
        name = _UNKNOWN_PROPERTY.search(reason)
        if name is not None:
            return properties.unknown(name[1], [field for field in KafkaSettings.model_fields if field != "properties"])
        return ConfigError(
            f"Kafka's client does not take its settings: {reason}.", "Correct the section `kafka` of the settings."
        )

    def scrub(self, text: str) -> str:
        """A message of the client's without the values of secrets."""
        for name, value in self._given.items():
            if properties.is_secret(name) and value:
                text = text.replace(value, "***")
        return text

    # ---- calls and errors

    @property
    def admin(self) -> AdminClient:
        return self._admin

    async def call(self, work: Callable[[], T], topic: str = "") -> T:
        """A blocking call of a client, beside the event loop. Raises what `translate` makes of its error."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except KafkaException as error:
            self._admin.poll(0)
            raise self.translate(error, topic) from None
        except RuntimeError as error:
            raise LogUnavailable(f"The Kafka client is closed: {error}.", "Open the log again.") from None

    async def answer(self, future: Future[T], topic: str = "") -> T:
        """What an admin request's future brings."""
        try:
            result = await asyncio.wrap_future(future)
        except KafkaException as error:
            self._admin.poll(0)
            raise self.translate(error, topic) from None
        self._admin.poll(0)
        self.well()
        return result

    def translate(self, error: KafkaException | KafkaError, topic: str = "") -> WalvecError:
        return translate(error, topic, self._trouble)

    def heard(self, error: KafkaError) -> None:
        """librdkafka's error callback: what the connection suffers from, kept for those who will time out."""
        if error.code() in (*_LOGIN, KafkaError._SSL):
            self._trouble = translate(error)
        elif error.code() not in _SILENT:
            return
        text = str(self._trouble or _reason(error))
        # once for an outage, and once more when its reason is known: each broker and connection says something else
        if not self._told or (self._trouble is not None and text != self._told):
            self._told = text
            _log.warning("kafka cannot be reached", extra={"action": "kafka_unreachable", "reason": self.scrub(text)})

    def well(self) -> None:
        """An answer came: earlier trouble is over."""
        if self._told:
            _log.info("kafka answers again", extra={"action": "kafka_reached"})
        self._trouble, self._told = None, ""

    def dispose(self, work: Callable[[], object]) -> None:
        """Takes an instance down beside the event loop, without waiting for it."""
        self._pool.submit(work)

    async def disposed(self, work: Callable[[], object]) -> None:
        await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


# ---- aiokafka's spelling


def _security(given: Mapping[str, str]) -> dict[str, Any]:
    protocol = given.get("security.protocol", "plaintext").upper()
    found: dict[str, Any] = {"security_protocol": protocol}
    if protocol.startswith("SASL"):
        mechanism = given.get("sasl.mechanism", given.get("sasl.mechanisms", "GSSAPI"))
        if mechanism not in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "GSSAPI"):
            raise ConfigError(
                f"sasl.mechanism {mechanism} cannot be used.", "Use SCRAM-SHA-512, SCRAM-SHA-256, PLAIN or GSSAPI."
            )
        found["sasl_mechanism"] = mechanism
        if mechanism == "GSSAPI":
            found["sasl_kerberos_service_name"] = given.get("sasl.kerberos.service.name", "kafka")
        else:
            found["sasl_plain_username"] = given.get("sasl.username")
            found["sasl_plain_password"] = given.get("sasl.password")
    if protocol.endswith("SSL"):
        found["ssl_context"] = _tls(given)
    return found


def _tls(given: Mapping[str, str]) -> ssl.SSLContext:
    if "ssl.keystore.location" in given:
        raise ConfigError(
            "ssl.keystore.location cannot be used.", "Give ssl.certificate.location and ssl.key.location (PEM) instead."
        )
    try:
        context = ssl.create_default_context(
            cafile=given.get("ssl.ca.location") if Path(given.get("ssl.ca.location", ".")).is_file() else None,
            capath=given.get("ssl.ca.location") if Path(given.get("ssl.ca.location", "")).is_dir() else None,
            cadata=given.get("ssl.ca.pem"),
        )
        if given.get("ssl.endpoint.identification.algorithm", "https") == "none":
            context.check_hostname = False
        if given.get("enable.ssl.certificate.verification", "true").lower() == "false":
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        password = given.get("ssl.key.password")
        if "ssl.certificate.location" in given:
            context.load_cert_chain(given["ssl.certificate.location"], given.get("ssl.key.location"), password)
        elif "ssl.certificate.pem" in given:
            # Python reads certificates from files only
            with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
                file.write(given["ssl.certificate.pem"] + "\n" + given.get("ssl.key.pem", ""))
                file.flush()
                context.load_cert_chain(file.name, password=password)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The certificates for Kafka cannot be used: {type(error).__name__}.",
            "Check WALVEC_KAFKA__SSL_CA_LOCATION, …SSL_CERTIFICATE_LOCATION and …SSL_KEY_LOCATION.",
        ) from None
    return context
