//! Can this node be sent traffic? [`proxy`] knows, from what the reconcile loop, the device follower and the Node
//! object say; [`server`] answers the kubelet and load balancers on port 10256, [`node_ports`] answers load balancers
//! on the healthCheckNodePorts of Services.

pub mod answer;
pub mod node_ports;
pub mod proxy;
pub mod server;
