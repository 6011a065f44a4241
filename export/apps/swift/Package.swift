// swift-tools-version: 5.9
import PackageDescription

let package = Package(
    name: "TwinhashQuery",
    platforms: [.iOS(.v16), .macOS(.v13)],
    products: [.library(name: "TwinhashQuery", targets: ["TwinhashQuery"])],
    targets: [
        .target(name: "TwinhashQuery"),
        .testTarget(name: "TwinhashQueryTests", dependencies: ["TwinhashQuery"]),
    ]
)
