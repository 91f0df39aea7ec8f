"""A real Kafka (KRaft) for tests: `kafka` is one broker for the session, `own_kafka` one that the test may break,
`kafka_with(nodes=3, security="SASL_PLAINTEXT", …)` any other.

Topics are not made by clients (`auto.create.topics.enable=false`) unless asked for. Administration goes through a plain
internal listener, whatever the clients' listener asks for. No Java here: skipped at a desk, a failure where CI=true.
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from confluent_kafka import OFFSET_END, KafkaException, TopicPartition
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ConfigSource,
    NewPartitions,
    NewTopic,
    ResourcePatternType,
    ResourceType,
)
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from tests.plugins import jars, processes
from tests.plugins.ports import free_ports

Security = Literal["PLAINTEXT", "SASL_PLAINTEXT", "SSL", "SASL_SSL"]

TOOLS = {
    "kafka-acls": "org.apache.kafka.tools.AclCommand",
    "kafka-configs": "kafka.admin.ConfigCommand",
    "kafka-console-consumer": "org.apache.kafka.tools.consumer.ConsoleConsumer",
    "kafka-console-producer": "org.apache.kafka.tools.ConsoleProducer",
    "kafka-consumer-groups": "org.apache.kafka.tools.consumer.group.ConsumerGroupCommand",
    "kafka-delete-records": "org.apache.kafka.tools.DeleteRecordsCommand",
    "kafka-dump-log": "kafka.tools.DumpLogSegments",
    "kafka-features": "org.apache.kafka.tools.FeatureCommand",
    "kafka-get-offsets": "org.apache.kafka.tools.GetOffsetShell",
    "kafka-leader-election": "org.apache.kafka.tools.LeaderElectionCommand",
    "kafka-log-dirs": "org.apache.kafka.tools.LogDirsCommand",
    "kafka-metadata-quorum": "org.apache.kafka.tools.MetadataQuorumCommand",
    "kafka-reassign-partitions": "org.apache.kafka.tools.reassign.ReassignPartitionsCommand",
    "kafka-storage": "kafka.tools.StorageTool",
    "kafka-topics": "org.apache.kafka.tools.TopicCommand",
}
USERS = {"walvec": "walvec-secret"}
START_SECONDS = 90.0
_PROPERTIES = {
    "process.roles": "broker,controller",
    "inter.broker.listener.name": "INTERNAL",
    "controller.listener.names": "CONTROLLER",
    "auto.create.topics.enable": "false",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "1000",
    "group.consumer.min.session.timeout.ms": "1000",
    "group.consumer.session.timeout.ms": "10000",
    "group.consumer.min.heartbeat.interval.ms": "100",
    "group.consumer.heartbeat.interval.ms": "500",
    "offsets.topic.num.partitions": "4",
    "transaction.state.log.num.partitions": "2",
    "share.coordinator.state.topic.num.partitions": "1",
    "broker.heartbeat.interval.ms": "500",
    "broker.session.timeout.ms": "4000",
    "num.network.threads": "2",
    "num.io.threads": "4",
    "log.cleaner.dedupe.buffer.size": "4194304",  # the default takes 128 MB of the heap
}


class KafkaBroker:
    """One node, broker and controller in one process; made by KafkaCluster."""

    def __init__(self, cluster: KafkaCluster, node: int) -> None:
        self.node = node
        self.directory = cluster.directory / str(node)
        self.data = self.directory / "data"
        self.log = self.directory / "broker.log"
        self.config = self.directory / "server.properties"
        self.ports: dict[str, int] = {}
        self._cluster = cluster
        self._process: subprocess.Popen[bytes] | None = None
        self.directory.mkdir()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def launch(self) -> None:
        """Starts the process; does not wait until it answers."""
        assert not self.running
        options = jars.JVM if self._cluster.measured else jars.BRIEF
        command = jars.java([jars.folder("")], heap=self._cluster.heap, options=options)
        self._process = processes.spawn([*self._cluster.prefix, *command, "kafka.Kafka", str(self.config)], self.log)

    def start(self) -> None:
        """Starts the node and waits until it serves."""
        self.launch()
        self._cluster.wait_ready()

    def stop(self) -> None:
        """An orderly end: leaders are moved away, files are closed."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def pause(self) -> None:
        """Takes the node off the air with its connections open, until `resume()`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def tail(self) -> str:
        return self.log.read_text(encoding="utf-8", errors="replace")[-4000:] if self.log.exists() else ""

    def _end(self, sig: signal.Signals) -> None:
        if self._process is not None:
            processes.end(self._process, sig)
            self._process = None


@dataclass
class KafkaCluster:
    """Nodes on free ports of 127.0.0.1, with their data in a temporary directory.

    `properties` override the broker's. `users` are SASL/PLAIN names and passwords. With `acl`, a user may do only what
    `grant` gave. `disk_bytes` puts the records (not the cluster's metadata) on a file system of that size.
    `measured`: its own speed matters.
    """

    nodes: int = 1
    security: Security = "PLAINTEXT"
    users: Mapping[str, str] = field(default_factory=lambda: USERS)
    acl: bool = False
    properties: Mapping[str, str] = field(default_factory=dict)
    disk_bytes: int | None = None
    heap: str = "384m"
    measured: bool = False

    def __post_init__(self) -> None:
        self.directory = processes.directory("walvec-kafka-")
        self.prefix: list[str] = []
        self.brokers = [KafkaBroker(self, node) for node in range(1, self.nodes + 1)]
        self._disk: subprocess.Popen[bytes] | None = None
        self._admin: AdminClient | None = None

    # -- where and how to connect ----------------------------------------------------------------------------------

    @property
    def bootstrap_servers(self) -> str:
        """The clients' listener, of all nodes."""
        return self._servers("INTERNAL" if self.security == "PLAINTEXT" else "CLIENT")

    @property
    def internal_servers(self) -> str:
        """The plain listener: everything is allowed there."""
        return self._servers("INTERNAL")

    @property
    def client_properties(self) -> dict[str, str]:
        """librdkafka's properties for the clients' listener (the first user's, with SASL)."""
        found = {"bootstrap.servers": self.bootstrap_servers}
        if self.security != "PLAINTEXT":
            found["security.protocol"] = self.security
        if self.security.endswith("SSL"):
            found["ssl.ca.location"] = str(self.directory / "ca.pem")
        if self.security.startswith("SASL"):
            user, password = next(iter(self.users.items()))
            found |= {"sasl.mechanism": "PLAIN", "sasl.username": user, "sasl.password": password}
        return found

    @property
    def admin(self) -> AdminClient:
        if self._admin is None:
            self._admin = AdminClient({"bootstrap.servers": self.internal_servers, "log_level": 0})
        return self._admin

    # -- life ------------------------------------------------------------------------------------------------------

    def start(self) -> KafkaCluster:
        """Formats and starts all nodes, and waits until all of them serve. Raises jars.Unavailable."""
        jars.folder("")
        if self.disk_bytes is not None:
            self._mount(self.disk_bytes)
        if self.security.endswith("SSL"):
            _certificates(self.directory)
        for last in (False, False, True):
            self._configure()
            self._format()
            try:
                self._launch_all()
                return self
            except RuntimeError as error:
                if last or "Address already in use" not in str(error):
                    raise
                self.kill()  # another program took a port in between: choose again
                for broker in self.brokers:
                    shutil.rmtree(broker.data)
        raise AssertionError("unreachable")

    def close(self) -> None:
        self.kill()
        self._admin = None
        if self._disk is not None:
            processes.end(self._disk)
        shutil.rmtree(self.directory, ignore_errors=True)
        processes.removed(self.directory)

    def stop(self) -> None:
        self._each(KafkaBroker.stop)

    def kill(self) -> None:
        self._each(KafkaBroker.kill)

    def pause(self) -> None:
        self._each(KafkaBroker.pause)

    def resume(self) -> None:
        self._each(KafkaBroker.resume)

    def restart(self) -> None:
        """Starts every node that does not run; stops none."""
        self._launch_all()

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Until every running node is in the cluster's metadata and a controller answers."""
        deadline = time.monotonic() + timeout
        admin = AdminClient({"bootstrap.servers": self.internal_servers, "log_level": 0})
        wanted = {broker.node for broker in self.brokers if broker.running}
        while True:
            try:
                described = admin.describe_cluster(request_timeout=2).result()
                if wanted <= {node.id for node in described.nodes} and described.controller is not None:
                    return
            except KafkaException:
                pass
            for broker in self.brokers:
                if broker.node in wanted and not broker.running:
                    raise RuntimeError(f"broker {broker.node} ended:\n{broker.tail()}")
            if time.monotonic() > deadline:
                raise RuntimeError(f"no Kafka after {timeout:.0f} s:\n" + "\n".join(b.tail() for b in self.brokers))
            time.sleep(0.1)

    # -- administration --------------------------------------------------------------------------------------------

    def create_topic(self, name: str, partitions: int = 1, replication: int | None = None, **config: str) -> None:
        """As somebody else would: `create_topic("t", 3, cleanup_policy="compact")`."""
        properties = {key.replace("_", "."): value for key, value in config.items()}
        factor = replication or min(3, self.nodes)
        for done in self.admin.create_topics([NewTopic(name, partitions, factor, config=properties)]).values():
            done.result(30)
        self._told(name, there=True)

    def delete_topic(self, name: str) -> None:
        for done in self.admin.delete_topics([name]).values():
            done.result(30)
        self._told(name, there=False)

    def settings(self, topic: str) -> dict[str, str]:
        """What is set on the topic itself."""
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
        found = self.admin.describe_configs([resource])[resource].result(30)
        own = ConfigSource.DYNAMIC_TOPIC_CONFIG.value
        return {name: entry.value for name, entry in found.items() if entry.source == own}

    def configure(self, topic: str, **config: str) -> None:
        """`configure("t", max_message_bytes="100000")`."""
        entries = [
            ConfigEntry(name.replace("_", "."), value, incremental_operation=AlterConfigOpType.SET)
            for name, value in config.items()
        ]
        resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=entries)
        self.admin.incremental_alter_configs([resource])[resource].result(30)

    def grow(self, topic: str, partitions: int) -> None:
        self.admin.create_partitions([NewPartitions(topic, partitions)])[topic].result(30)

    def expire(self, topic: str) -> None:
        """Nothing of what it holds now is kept."""
        partitions = self.admin.list_topics(topic, timeout=30).topics[topic].partitions
        for done in self.admin.delete_records([TopicPartition(topic, p, OFFSET_END) for p in partitions]).values():
            done.result(30)

    def _told(self, name: str, *, there: bool) -> None:
        """The controller has decided; the brokers' own view of the topics follows a moment later."""
        until = time.monotonic() + 30
        while (name in self.topics()) is not there:
            assert time.monotonic() < until, f"the brokers do not hear of {name}"
            time.sleep(0.02)

    def topics(self) -> set[str]:
        return set(self.admin.list_topics(timeout=30).topics)

    def leader(self, topic: str, partition: int = 0) -> KafkaBroker:
        found = self.admin.list_topics(topic, timeout=30).topics[topic].partitions[partition].leader
        return self.brokers[found - 1]

    def grant(self, user: str, kind: Literal["TOPIC", "GROUP", "BROKER"], prefix: str, *operations: str) -> None:
        """Lets a user do things: `grant("walvec", "TOPIC", "walvec.", "READ", "WRITE", "DESCRIBE")`."""
        name, pattern = prefix, ResourcePatternType.PREFIXED
        if kind == "BROKER":
            name, pattern = "kafka-cluster", ResourcePatternType.LITERAL
        for operation in operations:
            binding = AclBinding(
                ResourceType[kind],
                name,
                pattern,
                f"User:{user}",
                "*",
                AclOperation[operation],
                AclPermissionType.ALLOW,
            )
            for done in self.admin.create_acls([binding]).values():
                done.result(30)

    def run(self, tool: str, *arguments: str, stdin: str = "", internal: bool = True) -> str:
        """Runs one of Kafka's console tools, `run("kafka-topics", "--list")`; what it prints.

        `--bootstrap-server` is added where no server is named. Raises AssertionError with the output when it fails.
        """
        command = [*jars.java([jars.folder("")], heap="128m", level="error"), TOOLS[tool], *arguments]
        offline = tool in ("kafka-dump-log", "kafka-storage")
        if not offline and not any(a.startswith("--bootstrap-") for a in arguments):
            command += ["--bootstrap-server", self.internal_servers if internal else self.bootstrap_servers]
        done = subprocess.run(
            [*self.prefix, *command], input=stdin, capture_output=True, text=True, check=False, timeout=110
        )
        assert done.returncode == 0, f"{tool}: {done.stdout}{done.stderr}"
        return done.stdout

    # -- the small disk --------------------------------------------------------------------------------------------

    def resize_disk(self, size: int) -> None:
        """Makes the disk of `disk_bytes` larger (an administrator's cure), the node running or not."""
        self._in_disk("mount", "-o", f"remount,size={size}", str(self._disk_path))

    def fill_disk(self) -> None:
        """Takes what room is left on the disk of `disk_bytes`; `resize_disk` gives some again."""
        script = 'dd if=/dev/zero of="$1" bs=64k 2>&1 | grep -q "No space left"'
        self._in_disk("sh", "-c", script, "sh", str(self._disk_path / "ballast"))

    @property
    def _disk_path(self) -> Path:
        return self.directory / "disk"

    def _mount(self, size: int) -> None:
        """A tmpfs in a mount namespace of its own: it is gone with the process that holds it, come what may."""
        if os.geteuid() != 0 or shutil.which("unshare") is None or shutil.which("nsenter") is None:
            raise jars.Unavailable("a disk of limited size needs root, unshare and nsenter")
        self._disk_path.mkdir()
        ready = self.directory / "disk.ready"
        script = 'mount -t tmpfs -o "size=$1" tmpfs "$2" && : >"$3" && exec sleep infinity'
        self._disk = processes.spawn(
            ["unshare", "-m", "sh", "-c", script, "sh", str(size), str(self._disk_path), str(ready)],
            self.directory / "disk.log",
        )
        while not ready.exists():
            if self._disk.poll() is not None:
                raise jars.Unavailable(f"no file system can be mounted: {(self.directory / 'disk.log').read_text()}")
            time.sleep(0.01)
        self.prefix = ["nsenter", "-t", str(self._disk.pid), "-m", "--"]

    def _in_disk(self, *command: str) -> None:
        subprocess.run([*self.prefix, *command], check=True, stdin=subprocess.DEVNULL)

    # -- set-up ----------------------------------------------------------------------------------------------------

    def _each(self, act: Callable[[KafkaBroker], None]) -> None:
        for broker in self.brokers:
            if broker.running:
                act(broker)

    def _servers(self, listener: str) -> str:
        return ",".join(f"127.0.0.1:{broker.ports[listener]}" for broker in self.brokers)

    def _launch_all(self) -> None:
        for broker in self.brokers:
            if not broker.running:
                broker.launch()
        self.wait_ready()

    def _format(self) -> None:
        cluster = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=").replace("-", "w", 1)
        command = [*self.prefix, *jars.java([jars.folder("")], heap="128m"), TOOLS["kafka-storage"]]
        running = [
            subprocess.Popen(
                [*command, "format", "-t", cluster, "-c", str(broker.config)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            for broker in self.brokers
        ]
        for process in running:
            output, _ = process.communicate()
            assert process.returncode == 0, output.decode(errors="replace")

    def _configure(self) -> None:
        names = ["INTERNAL", "CONTROLLER", *(["CLIENT"] if self.security != "PLAINTEXT" else [])]
        free = iter(free_ports(len(names) * self.nodes))
        for broker in self.brokers:
            broker.ports = {name: next(free) for name in names}
        replicas = str(min(3, self.nodes))
        shared = {
            **_PROPERTIES,
            "controller.quorum.voters": ",".join(f"{b.node}@127.0.0.1:{b.ports['CONTROLLER']}" for b in self.brokers),
            "listener.security.protocol.map": f"INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT,CLIENT:{self.security}",
            "default.replication.factor": replicas,
            "offsets.topic.replication.factor": replicas,
            "transaction.state.log.replication.factor": replicas,
            "transaction.state.log.min.isr": "1",
            "share.coordinator.state.topic.replication.factor": replicas,
            "share.coordinator.state.topic.min.isr": "1",
            **self._security_properties(),
        }
        for broker in self.brokers:
            serving = {name: port for name, port in broker.ports.items() if name != "CONTROLLER"}
            own = {
                "node.id": str(broker.node),
                "listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in broker.ports.items()),
                "advertised.listeners": ",".join(f"{name}://127.0.0.1:{port}" for name, port in serving.items()),
                "log.dirs": str(broker.data),
            }
            if self.disk_bytes is not None:
                own["metadata.log.dir"] = str(broker.data)
                own["log.dirs"] = str(self._disk_path / str(broker.node))
            lines = [f"{name}={value}\n" for name, value in {**shared, **own, **self.properties}.items()]
            broker.config.write_text("".join(lines), encoding="utf-8")

    def _security_properties(self) -> dict[str, str]:
        found: dict[str, str] = {}
        if self.security.startswith("SASL"):
            known = " ".join(f'user_{user}="{password}"' for user, password in self.users.items())
            login = "org.apache.kafka.common.security.plain.PlainLoginModule"
            found["listener.name.client.sasl.enabled.mechanisms"] = "PLAIN"
            found["listener.name.client.plain.sasl.jaas.config"] = f"{login} required {known};"
        if self.security.endswith("SSL"):
            found["listener.name.client.ssl.keystore.type"] = "PEM"
            found["listener.name.client.ssl.keystore.location"] = str(self.directory / "server.pem")
            found["listener.name.client.ssl.truststore.type"] = "PEM"
            found["listener.name.client.ssl.truststore.location"] = str(self.directory / "ca.pem")
        if self.acl:
            found["authorizer.class.name"] = "org.apache.kafka.metadata.authorizer.StandardAuthorizer"
            found["super.users"] = "User:ANONYMOUS"  # who comes by the internal listener
        return found


def _certificates(directory: Path) -> None:
    """ca.pem; server.pem and client.pem (key and certificate chain), signed by it."""
    now = datetime.datetime.now(datetime.UTC)

    def certificate(name: str, key: ec.EllipticCurvePrivateKey, ca: bool) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "walvec test CA")]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=2))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        )

    signer = ec.generate_private_key(ec.SECP256R1())
    root = certificate("walvec test CA", signer, True).sign(signer, hashes.SHA256())
    authority = root.public_bytes(serialization.Encoding.PEM)
    (directory / "ca.pem").write_bytes(authority)
    addresses = x509.SubjectAlternativeName(
        [x509.DNSName("localhost"), x509.IPAddress(ipaddress.IPv4Address("127.0.0.1"))]
    )
    for name in ("server", "client"):
        key = ec.generate_private_key(ec.SECP256R1())
        signed = certificate(name, key, False).add_extension(addresses, critical=False).sign(signer, hashes.SHA256())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (directory / f"{name}.pem").write_bytes(private + signed.public_bytes(serialization.Encoding.PEM) + authority)


@contextmanager
def started(**options: Any) -> Iterator[KafkaCluster]:
    """A cluster, gone afterwards; skips or fails where there is no Java. The options are KafkaCluster's."""
    cluster = KafkaCluster(**options)
    try:
        try:
            cluster.start()
        except jars.Unavailable as error:
            jars.skip_or_fail(error)
        yield cluster
    finally:
        cluster.close()


@pytest.fixture(scope="session")
def kafka() -> Iterator[KafkaCluster]:
    """The session's broker. A test that stops it uses `own_kafka`."""
    with started() as cluster:
        yield cluster


@pytest.fixture
def own_kafka() -> Iterator[KafkaCluster]:
    """One broker of the test's own, which it may pause, kill or restart."""
    with started() as cluster:
        yield cluster


@pytest.fixture
def kafka_with() -> Iterator[Callable[..., KafkaCluster]]:
    """`kafka_with(nodes=3)`: as own_kafka, with KafkaCluster's options."""
    opened: list[Any] = []

    def start(**options: Any) -> KafkaCluster:
        context = started(**options)
        cluster = context.__enter__()
        opened.append(context)
        return cluster

    yield start
    for context in reversed(opened):
        context.__exit__(None, None, None)


def properties_environment(properties: Mapping[str, str]) -> dict[str, str]:
    """librdkafka's properties as walvec's environment: `WALVEC_KAFKA__BOOTSTRAP_SERVERS=…`."""
    return {f"WALVEC_KAFKA__{name.replace('.', '_').upper()}": value for name, value in properties.items()}
