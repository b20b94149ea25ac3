//! The manifests for Kubernetes: they are what Kubernetes reads, and agree with the command, its unit and the profiles beside them. No
//! schema is at hand that needs no network, so the fields that matter are looked at one by one.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use serde::Deserialize;
use serde_json::Value;

const SCANNER: &str = include_str!("../../../packaging/kubernetes/sksm-scan.yaml");
const DOMAIN: &str = include_str!("../../../packaging/kubernetes/domain.yaml");
const README: &str = include_str!("../../../packaging/kubernetes/README.md");
const SCANNERS_PROFILE: &str = include_str!("../../../packaging/kubernetes/seccomp-sksm-scan.json");
const WORKLOADS_PROFILE: &str =
    include_str!("../../../packaging/kubernetes/seccomp-sksm-workload.json");
const UNIT: &str = include_str!("../../../packaging/systemd/sksm-scan.service");

/// Each document, with what its anchors stand for.
fn documents(text: &str) -> Vec<Value> {
    serde_norway::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap())
        .collect()
}

fn of_kind(text: &str, kind: &str) -> Value {
    let mut found = documents(text);
    found.retain(|document| document["kind"] == kind);
    assert_eq!(found.len(), 1, "{kind}");
    found.remove(0)
}

fn words(list: &Value) -> Vec<String> {
    let list = list
        .as_array()
        .unwrap_or_else(|| panic!("{list} is no list"));
    list.iter()
        .map(|word| word.as_str().unwrap().to_owned())
        .collect()
}

/// Those that begin, and those that stay.
fn containers(daemons: &Value) -> Vec<Value> {
    let pod = &daemons["spec"]["template"]["spec"];
    ["initContainers", "containers"]
        .iter()
        .flat_map(|kind| pod[kind].as_array().unwrap().clone())
        .collect()
}

fn sksm(words: &[&str]) -> (Option<i32>, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_sksm"))
        .args(words)
        .output()
        .unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

#[test]
fn every_document_says_what_it_is() {
    let mut names = BTreeSet::new();
    for text in [SCANNER, DOMAIN] {
        for document in documents(text) {
            let kind = document["kind"].as_str().unwrap();
            let version = match kind {
                "Namespace" | "ConfigMap" => "v1",
                "DaemonSet" => "apps/v1",
                other => panic!("{other}"),
            };
            assert_eq!(document["apiVersion"], version);
            let name = document["metadata"]["name"].as_str().unwrap();
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
            assert!(name.chars().all(plain), "{name}");
            assert!(
                names.insert((kind.to_owned(), name.to_owned())),
                "{kind} {name} twice"
            );
            if kind != "Namespace" {
                assert_eq!(document["metadata"]["namespace"], "sksm");
            }
        }
    }
}

/// A field that Kubernetes does not know it drops without a word; these are all that are used, as its API has them.
#[test]
fn there_are_no_fields_of_other_names() {
    let pod = [
        "automountServiceAccountToken",
        "containers",
        "enableServiceLinks",
        "hostPID",
        "initContainers",
        "nodeSelector",
        "securityContext",
        "terminationGracePeriodSeconds",
        "tolerations",
        "volumes",
    ];
    let container = [
        "command",
        "env",
        "image",
        "name",
        "resources",
        "securityContext",
        "volumeMounts",
    ];
    let context = [
        "allowPrivilegeEscalation",
        "appArmorProfile",
        "capabilities",
        "readOnlyRootFilesystem",
        "runAsGroup",
        "runAsNonRoot",
        "runAsUser",
        "seccompProfile",
    ];
    let only = |value: &Value, known: &[&str]| {
        for name in value
            .as_object()
            .into_iter()
            .flatten()
            .map(|(name, _)| name)
        {
            assert!(known.contains(&name.as_str()), "{name}");
        }
    };
    for text in [SCANNER, DOMAIN] {
        let daemons = of_kind(text, "DaemonSet");
        only(&daemons["spec"], &["selector", "template"]);
        let spec = &daemons["spec"]["template"]["spec"];
        only(spec, &pod);
        only(
            &spec["securityContext"],
            &["appArmorProfile", "runAsGroup", "runAsUser"],
        );
        let volumes = spec["volumes"].as_array().unwrap();
        for volume in volumes {
            only(volume, &["configMap", "emptyDir", "hostPath", "name"]);
        }
        let volumes: BTreeSet<&str> = volumes
            .iter()
            .map(|volume| volume["name"].as_str().unwrap())
            .collect();
        let mut mounted = BTreeSet::new();
        let all = containers(&daemons);
        for one in &all {
            only(one, &container);
            only(&one["securityContext"], &context);
            only(&one["securityContext"]["capabilities"], &["add", "drop"]);
            only(&one["resources"], &["limits", "requests"]);
            for mount in one["volumeMounts"].as_array().into_iter().flatten() {
                only(mount, &["mountPath", "name", "readOnly"]);
                mounted.insert(mount["name"].as_str().unwrap());
            }
        }
        assert_eq!(mounted, volumes);
        // Pods are found by labels that they have.
        let labels = &daemons["spec"]["template"]["metadata"]["labels"];
        assert_eq!(daemons["spec"]["selector"]["matchLabels"], *labels);
    }
}

/// The command takes what the containers call it with, and what the ConfigMap has.
#[test]
fn its_command_lines_are_the_commands() {
    let daemons = of_kind(SCANNER, "DaemonSet");
    let mut called = 0;
    for container in containers(&daemons) {
        let line = words(&container["command"]);
        if line[0] != "sksm" {
            continue;
        }
        called += 1;
        let mut arguments: Vec<&str> = line[1..].iter().map(String::as_str).collect();
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scan.conf");
        let option = format!("--config={}", file.display());
        if let Some(config) = arguments
            .iter_mut()
            .find(|word| word.starts_with("--config="))
        {
            let mounts = container["volumeMounts"].as_array().unwrap();
            let mount = mounts
                .iter()
                .find(|mount| mount["name"] == "config")
                .unwrap();
            let data = &of_kind(SCANNER, "ConfigMap")["data"];
            let name = config.rsplit('/').next().unwrap();
            assert_eq!(
                *config,
                format!("--config={}/{name}", mount["mountPath"].as_str().unwrap())
            );
            std::fs::write(&file, data[name].as_str().unwrap()).unwrap();
            *config = &option;
            // It would go on for ever.
            arguments.extend(["--once", "--stable=100ms", "--pid=2147483647"]);
        }
        let (status, said) = sksm(&arguments);
        assert_ne!(status, Some(2), "{line:?}: {said}");
    }
    assert_eq!(called, 2);
    let metrics = SCANNER.split("sksm stat ").nth(1).unwrap();
    let option = metrics.split_whitespace().next().unwrap();
    assert_ne!(sksm(&["stat", option]).0, Some(2));
    assert_eq!(sksm(&["stat", "--no-such-option"]).0, Some(2));
}

#[test]
fn rights_are_the_units() {
    let daemons = of_kind(SCANNER, "DaemonSet");
    let unit = UNIT
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let unit: BTreeSet<String> = unit
        .unwrap()
        .split(' ')
        .map(|name| name.strip_prefix("CAP_").unwrap().to_owned())
        .collect();
    for container in containers(&daemons) {
        let context = &container["securityContext"];
        assert_eq!(words(&context["capabilities"]["drop"]), ["ALL"]);
        assert_eq!(context["allowPrivilegeEscalation"], false);
        assert_eq!(context["readOnlyRootFilesystem"], true);
        let name = container["name"].as_str().unwrap();
        let added = &context["capabilities"]["add"];
        if name == "metrics" {
            assert!(added.is_null(), "{added}");
            continue;
        }
        assert_eq!(
            words(added).into_iter().collect::<BTreeSet<_>>(),
            unit,
            "{name}"
        );
        // Where the text beside it has people put the file.
        let profile = &context["seccompProfile"];
        assert_eq!(profile["type"], "Localhost");
        let path = profile["localhostProfile"].as_str().unwrap();
        assert!(
            README.contains(&format!("/var/lib/kubelet/seccomp/{path}")),
            "{path}"
        );
    }
}

#[test]
fn profiles_name_calls_that_there_are() {
    // As Linux has them on x86_64, from the header for C programs.
    let header = [
        "/usr/include/x86_64-linux-gnu/asm/unistd_64.h",
        "/usr/include/asm/unistd_64.h",
    ]
    .iter()
    .find_map(|path| std::fs::read_to_string(path).ok())
    .expect("no asm/unistd_64.h: apt install linux-libc-dev");
    let calls: BTreeMap<&str, u32> = header
        .lines()
        .filter_map(|line| line.strip_prefix("#define __NR_")?.split_once(' '))
        .map(|(name, number)| (name, number.trim().parse().unwrap()))
        .collect();
    let allowed = |text: &str| {
        let profile: Value = serde_json::from_str(text).unwrap();
        assert_eq!(profile["defaultAction"], "SCMP_ACT_ERRNO");
        let mut allowed = BTreeSet::new();
        for rule in profile["syscalls"].as_array().unwrap() {
            assert_eq!(rule["action"], "SCMP_ACT_ALLOW");
            for name in words(&rule["names"]) {
                assert!(calls.contains_key(name.as_str()), "{name}");
                assert!(allowed.insert(name.clone()), "{name} twice");
            }
        }
        allowed
    };
    let scanner = allowed(SCANNERS_PROFILE);
    let workload = allowed(WORKLOADS_PROFILE);
    // The scanner asks whether the kernel merges as every program does.
    assert!(workload.is_subset(&scanner), "{:?}", &workload - &scanner);
    // What could leave the process, or change others.
    for closed in [
        "bpf",
        "connect",
        "kill",
        "mount",
        "process_vm_writev",
        "ptrace",
        "setns",
        "socket",
        "unshare",
    ] {
        assert!(!scanner.contains(closed), "{closed}");
    }
}
