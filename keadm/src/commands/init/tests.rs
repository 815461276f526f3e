use std::net::TcpListener;

use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

fn init(flags: &str) -> Init {
    match Cli::try_parse_from(format!("keadm init {flags}").split_whitespace()).unwrap().command {
        Command::Init(init) => init,
        _ => unreachable!("it is init"),
    }
}

#[test]
fn what_was_configured_stays_unless_told_otherwise() {
    for mode in ["--mode=host --config-dir=/srv/cloud", "--mode=deployment"] {
        let first = init(&format!(
            "{mode} --advertise-address=192.0.2.1 --dns-names=cloud.example --cloudhub-port=10001 \
             --admin-address=127.0.0.1:9999 --set=modules.cloudHub.nodeLimit=77"
        ));
        let config = configure(&first, CloudCoreConfig::default()).unwrap();
        assert_eq!(config.modules.cloud_hub.websocket.port, 10001);
        assert_eq!(configure(&init(mode), config.clone()).unwrap(), config, "{mode}");

        let second = configure(&init(&format!("{mode} --cloudhub-port=10002")), config.clone()).unwrap();
        let mut expected = config;
        expected.modules.cloud_hub.websocket.port = 10002;
        assert_eq!(second, expected, "{mode}");
    }
}

#[test]
fn an_unknown_key_is_a_problem() {
    let problem = configure(&init("--set=modules.cloudHub.nodeLimitt=7"), CloudCoreConfig::default());
    assert!(problem.unwrap_err().cause.ends_with("did you mean modules.cloudHub.nodeLimit?"));
}

#[test]
fn an_image_from_elsewhere_stays() {
    let default = concat!("skerry/cloudcore:v", env!("CARGO_PKG_VERSION"));
    let deployed = |image: &str| Some(image.to_owned());
    assert_eq!(image(&init(""), None), default);
    assert_eq!(image(&init(""), deployed("skerry/cloudcore:v0.0.1")), default);
    assert_eq!(image(&init(""), deployed("reg.example:5000/cloudcore")), "reg.example:5000/cloudcore");
    assert_eq!(image(&init("--image=a/b:c"), deployed("x/y:z")), "a/b:c");
    let from = image(&init("--image-repository=reg.example/skerry/"), deployed("x/y:z"));
    assert_eq!(from, concat!("reg.example/skerry/cloudcore:v", env!("CARGO_PKG_VERSION")));
}

#[test]
fn ports_that_others_have_are_problems_and_cloudcores_own_are_not() {
    let (hub, admin) = (TcpListener::bind("127.0.0.1:0").unwrap(), TcpListener::bind("127.0.0.1:0").unwrap());
    let mut config = CloudCoreConfig::default();
    let admin_address = admin.local_addr().unwrap().to_string();
    config.modules.cloud_hub.websocket.port = hub.local_addr().unwrap().port();
    config.common_config.monitor_server.bind_address.clone_from(&admin_address);
    let problems = host::ports_are_free(&config, None);
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(problems[1].cause.starts_with(&admin_address), "{problems:?}");
    assert!(problems[0].fix.ends_with("--cloudhub-port") && problems[1].fix.ends_with("--admin-address"));
    assert_eq!(host::ports_are_free(&config, Some(&config)), []);
    let mut running = config.clone();
    running.common_config.monitor_server.bind_address = "127.0.0.1:1".to_owned();
    assert_eq!(host::ports_are_free(&config, Some(&running)).len(), 1);
    config.common_config.monitor_server.bind_address = "unix:///run/cloudcore.sock".to_owned();
    drop(hub);
    assert_eq!(host::ports_are_free(&config, None), []);
}
