"""Whether a run of the suite has shown all that it can show of a mesh: the report by itself names no test, and a test that did not
run is no failure to it.

usage: check.py REPORT.yaml LOG [NAMES.txt]     NAMES.txt: where the names of the tests that passed go
"""
import pathlib
import re
import sys

# All mesh tests of v1.7.0.
TESTS = """
MeshBasic MeshConsumerRoute MeshFrontend MeshFrontendHostname MeshGRPCRouteRequestHeaderModifier MeshGRPCRouteWeight
MeshHTTPRoute303Redirect MeshHTTPRoute307Redirect MeshHTTPRoute308Redirect MeshHTTPRouteBackendRequestHeaderModifier
MeshHTTPRouteMatching MeshHTTPRouteNamedRule MeshHTTPRouteQueryParamMatching MeshHTTPRouteRedirectHostAndStatus
MeshHTTPRouteRedirectPath MeshHTTPRouteRedirectPort MeshHTTPRouteRequestHeaderModifier MeshHTTPRouteRewritePath
MeshHTTPRouteSchemeRedirect MeshHTTPRouteSimpleSameNamespace MeshHTTPRouteWeight MeshPorts MeshTrafficSplit
""".split()

report, log = (pathlib.Path(path).read_text() for path in sys.argv[1:3])
passed = sorted(set(re.findall(r"^    --- PASS: TestConformance/(\S+) ", log, re.MULTILINE)))
problems = [f"{name} has not passed" for name in TESTS if name not in passed]
problems += [f"{name} is new: add it to the list" for name in passed if name not in TESTS]
# The report has a fixed format, so these checks need no YAML library.
words = " ".join(report.split())
for wanted in (
    # The order of the profiles is random.
    "- core: result: success statistics: Failed: 0 Passed: 3 Skipped: 0 name: MESH-GRPC",
    "- core: result: success statistics: Failed: 0 Passed: 7 Skipped: 0 extended: result: success statistics: Failed: 0 Passed: 7 Skipped: 0",
    "summary: Core tests succeeded. Extended tests succeeded.",
    "gatewayAPIVersion: v1.7.0",
):
    if wanted not in words:
        problems.append(f"the report does not say: {wanted}")
features = re.findall(r"^ *- (Mesh\w+)$", report, re.MULTILINE)
if len(features) != 9 or "unsupportedFeatures" in report:
    problems.append(f"the report has {len(features)} features, not all 9: {features}")
if problems:
    sys.exit("\n".join(problems))
if len(sys.argv) > 3:
    pathlib.Path(sys.argv[3]).write_text("\n".join(passed) + "\n")
print(f"MESH-HTTP: core 7, extended 7, {len(features)} features of 9; MESH-GRPC: core 3; {len(passed)} tests of {len(TESTS)}")
