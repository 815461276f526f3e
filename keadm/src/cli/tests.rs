use clap::CommandFactory;

use super::*;

fn parse(line: &str) -> Command {
    Cli::try_parse_from(line.split_whitespace()).unwrap_or_else(|error| panic!("{line}: {error}")).command
}

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn the_commands_of_kubeedges_guide_work_as_written() {
    let Command::Init(init) = parse("keadm init --advertise-address=192.0.2.1 --kubeedge-version=1.12.0")
    else {
        panic!("init")
    };
    assert_eq!(init.advertise_address, ["192.0.2.1".parse::<IpAddr>().unwrap()]);
    assert_eq!(init.kubeedge_version.as_deref(), Some("1.12.0"));
    assert!(init.mode == Mode::Deployment);
    let Command::GetToken(get) = parse("keadm gettoken --kube-config=/root/.kube/config") else {
        panic!("gettoken")
    };
    assert_eq!(get.kube.kube_config.as_deref(), Some(Path::new("/root/.kube/config")));
    let line = "keadm join --cloudcore-ipport=192.0.2.1:10000 --token=abc --kubeedge-version=1.12.0";
    let Command::Join(join) = parse(line) else { panic!("join") };
    assert_eq!(join.cloudcore_ipport, ["192.0.2.1:10000"]);
    assert_eq!(join.token.as_deref(), Some("abc"));
    assert_eq!(join.root_dir, Path::new("/"));
}

#[test]
fn reset_names_a_side_or_not() {
    for (line, side) in [
        ("keadm reset --force", None),
        ("keadm reset edge", Some(Side::Edge)),
        ("keadm reset cloud", Some(Side::Cloud)),
    ] {
        let Command::Reset(reset) = parse(line) else { panic!("reset") };
        assert!(reset.side == side, "{line}");
    }
}

#[test]
fn bad_values_are_refused() {
    for line in [
        "keadm join --cloudcore-ipport=192.0.2.1",
        "keadm join --cloudcore-ipport=192.0.2.1:0",
        "keadm join --cloudcore-ipport=c:1 --labels=a=b=c",
        "keadm join --cloudcore-ipport=c:1 --cgroupdriver=other",
        "keadm join --cloudcore-ipport=c:1 --kubeedge-version=1.11.0",
        "keadm init --cloudhub-port=0",
        "keadm gettoken --ttl=10y",
    ] {
        assert!(Cli::try_parse_from(line.split_whitespace()).is_err(), "{line}");
    }
}

#[test]
fn flags_of_kubeedge_without_a_meaning_here_say_so() {
    for (flags, reason) in [
        ("init --profile=version=v1.12.0", "keadm init applies no Helm chart"),
        ("init --external-helm-root=/x", "keadm init applies no Helm chart"),
        ("init -f values.yaml", "keadm init applies no Helm chart"),
        ("init --manifests=x", "keadm init applies no Helm chart"),
        ("join -e c:1 --certport=10002", "same port as everything else"),
        ("join -e c:1 --certPath=/x", "--root-dir"),
        ("join -e c:1 --tarballpath=/x", "nothing is downloaded"),
        ("join -e c:1 --image-repository=x", "no image is pulled"),
        ("join -e c:1 --hub-protocol=mqtt", "possible values: quic, websocket"),
        ("join -e c:1 --pre-run=x.sh", "runs no scripts"),
        ("reset edge --post-run=x.sh", "runs no scripts"),
    ] {
        let line = format!("keadm {flags}");
        let error = Cli::try_parse_from(line.split_whitespace()).map(drop).unwrap_err().to_string();
        assert!(error.contains(reason), "{line}: {error}");
    }
    let Command::Init(init) = parse("keadm init --skip-preflight-checks --set=modules.cloudHub.nodeLimit=5")
    else {
        panic!("init")
    };
    assert!(init.force && init.set.len() == 1);
    parse("keadm version -o short");
}

#[test]
fn labels_are_taken_apart() {
    let Command::Join(join) = parse("keadm join -e c:1 --labels=site=north,node-role.kubernetes.io/edge")
    else {
        panic!("join")
    };
    let labels: Vec<_> = join.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(labels, [("site", "north"), ("node-role.kubernetes.io/edge", "")]);
}
