//! The connection to the API server: HTTP/2, so one for all requests and watches, as client-go has it.
//!
//! Over HTTP/1.1 each request that is under way has a connection for itself, with its handshake, file and buffers; a fleet that
//! comes back at once would open thousands. What is between us and the API server may still choose HTTP/1.1.

use std::time::Duration;

use hyper_rustls::{FixedServerNameResolver, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{self, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use kube::{
    Client, Config,
    client::{Body, ConfigExt as _},
    config::{KubeConfigOptions, Kubeconfig},
};
use tower::{BoxError, ServiceBuilder};

use crate::{app::AppError, config::ApiServerConfig};

const CONNECT: Duration = Duration::from_secs(10);
/// As client-go: a connection over which nothing came for so long is asked for a sign of life, and given up after as much.
const QUIET: Duration = Duration::from_secs(30);
const SIGN: Duration = Duration::from_secs(15);

/// A client of the API server that `config` names, and the server's address.
pub(crate) async fn client(config: &ApiServerConfig) -> Result<(Client, http::Uri), AppError> {
    let mut client = match &config.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path).map_err(AppError::Kubeconfig)?;
            Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .map_err(AppError::Kubeconfig)?
        }
        None => Config::incluster().map_err(AppError::InCluster)?,
    };
    if let Some(master) = &config.master {
        client.cluster_url = master.parse().map_err(AppError::Master)?;
    }
    let server = client.cluster_url.clone();
    Ok((build(&client).map_err(AppError::Client)?, server))
}

fn build(config: &Config) -> Result<Client, kube::Error> {
    if let Some(proxy) = &config.proxy_url {
        return Err(kube::Error::ProxyProtocolUnsupported { proxy_url: Box::new(proxy.clone()) });
    }
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_connect_timeout(Some(CONNECT));
    tcp.set_nodelay(true);
    let mut tls =
        HttpsConnectorBuilder::new().with_tls_config(config.rustls_client_config()?).https_or_http();
    if let Some(name) = &config.tls_server_name {
        let name = name.clone().try_into().map_err(|error| kube::Error::Service(Box::new(error)))?;
        tls = tls.with_server_name_resolver(FixedServerNameResolver::new(name));
    }
    let client: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new())
        .timer(TokioTimer::new())
        .pool_timer(TokioTimer::new())
        .http2_keep_alive_interval(QUIET)
        .http2_keep_alive_timeout(SIGN)
        .build(tls.enable_all_versions().wrap_connector(tcp));
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        // Where there is no authorization, the error is as it came.
        .map_err(BoxError::from)
        .service(client);
    Ok(Client::new(service, config.default_namespace.clone()))
}
