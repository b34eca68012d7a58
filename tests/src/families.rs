//! Cases that are written once, as functions of modules `cases4` and `cases6`, and run for both families.

/// Makes one test per family of each function; of those before a semicolon two more: they concern what comes from the
/// network, which XDP sees before tc where the driver can.
#[macro_export]
macro_rules! both_families {
    ($($name:ident)+) => {$(
        mod $name {
            $crate::both_families!(@tests $name);
        }
    )+};
    ($($xdp:ident)+; $($name:ident)+) => {
        $(
            mod $xdp {
                $crate::both_families!(@tests $xdp);

                #[test]
                fn ipv4_xdp() {
                    $crate::prog::through_xdp(super::cases4::$xdp);
                }
                #[test]
                fn ipv6_xdp() {
                    $crate::prog::through_xdp(super::cases6::$xdp);
                }
            }
        )+
        $crate::both_families!($($name)+);
    };
    (@tests $name:ident) => {
        #[test]
        fn ipv4() {
            super::cases4::$name();
        }
        #[test]
        fn ipv6() {
            super::cases6::$name();
        }
    };
}
