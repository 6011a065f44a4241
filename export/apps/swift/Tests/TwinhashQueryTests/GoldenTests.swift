import CoreML
import XCTest

@testable import TwinhashQuery

/// Every model of a bundle on the golden photographs: what a wrong decode or resize does not pass.
///
///     TWINHASH_BUNDLE=path/to/bundle swift test
final class GoldenTests: XCTestCase {
    private struct Row: Decodable {
        let file: String
        let logits: [Float]
    }

    private struct Space: Decodable {
        let id: String
    }

    private func bundleFolder() throws -> URL {
        guard let path = ProcessInfo.processInfo.environment["TWINHASH_BUNDLE"] else {
            throw XCTSkip("TWINHASH_BUNDLE names no bundle")
        }
        return URL(fileURLWithPath: path)
    }

    private func read<T: Decodable>(_ type: T.Type, _ url: URL) throws -> T {
        try JSONDecoder().decode(type, from: Data(contentsOf: url))
    }

    private func modelPackages(_ bundle: URL) throws -> [URL] {
        let found = try FileManager.default.contentsOfDirectory(at: bundle, includingPropertiesForKeys: nil)
        return found.filter { $0.pathExtension == "mlpackage" }
    }

    private func open(_ package: URL, _ bundle: URL) async throws -> QueryEncoder {
        let space = try read(Space.self, bundle.appendingPathComponent("codespace.json")).id
        let compiled = try await MLModel.compileModel(at: package)
        return try await QueryEncoder(contentsOf: compiled, space: space)
    }

    private func square(of file: String) -> String {
        guard file.hasPrefix("golden/photos/") else { return file }
        let name = URL(fileURLWithPath: file).deletingPathExtension().lastPathComponent
        return "golden/squares/\(name).png"
    }

    private func rms(_ values: [Float]) -> Float {
        (values.map { $0 * $0 }.reduce(0, +) / Float(values.count)).squareRoot()
    }

    /// Through one model, so that what its weights lost does not count; w8a8 rounds too much to show a wrong resize.
    func testPhotographsBecomeTheirSquares() async throws {
        let bundle = try bundleFolder()
        let files = try read([Row].self, bundle.appendingPathComponent("golden.json")).map(\.file)
        let packages = try modelPackages(bundle)
        XCTAssertFalse(packages.isEmpty, "the bundle has .mlpackage files")
        for package in packages where !package.lastPathComponent.contains("w8a8") {
            let encoder = try await open(package, bundle)
            var squares: [String: [Float]] = [:]
            for file in files {
                squares[file] = try await encoder.encode(photo: bundle.appendingPathComponent(square(of: file))).logits
            }
            let most = rms(squares.values.flatMap { $0 }) / 20
            for (file, said) in squares {
                let found = try await encoder.encode(photo: bundle.appendingPathComponent(file)).logits
                let error = rms(zip(found, said).map { $0 - $1 })
                XCTAssertLessThanOrEqual(error, most, "\(package.lastPathComponent), \(file)")
            }
        }
    }

    /// Core ML calculates in float16: bits near zero may differ.
    func testTheFloatModelReturnsTheGoldenCodes() async throws {
        let bundle = try bundleFolder()
        let rows = try read([Row].self, bundle.appendingPathComponent("golden.json"))
        let near = 0.1 * rms(rows.flatMap(\.logits))
        for package in try modelPackages(bundle) where package.lastPathComponent == "query-fp16.mlpackage" {
            let encoder = try await open(package, bundle)
            for row in rows {
                let found = try await encoder.encode(photo: bundle.appendingPathComponent(square(of: row.file)))
                for (bit, said) in row.logits.enumerated() where abs(said) > near {
                    XCTAssertEqual(found.code[bit / 8] >> (bit % 8) & 1, said > 0 ? 1 : 0, "\(row.file), bit \(bit)")
                }
            }
        }
    }

    func testAForeignGalleryIsRefused() async throws {
        let bundle = try bundleFolder()
        guard let package = try modelPackages(bundle).first else { throw XCTSkip("no .mlpackage in the bundle") }
        let compiled = try await MLModel.compileModel(at: package)
        do {
            _ = try await QueryEncoder(contentsOf: compiled, space: "ffffffffffffffff")
            XCTFail("a model of another code space was opened")
        } catch let error as QueryEncoderError {
            XCTAssert(error.localizedDescription.contains("ffffffffffffffff"))
        }
    }

    func testBytesGiveTheCodeOfTheirFile() async throws {
        let bundle = try bundleFolder()
        guard let package = try modelPackages(bundle).first else { throw XCTSkip("no .mlpackage in the bundle") }
        let encoder = try await open(package, bundle)
        let photo = bundle.appendingPathComponent("golden/photos/exif-6.jpg")
        let (ofFile, ofBytes) = (try await encoder.encode(photo: photo), try await encoder.encode(photo: Data(contentsOf: photo)))
        XCTAssertEqual(ofFile.code, ofBytes.code)
    }

    func testNeighboursComeByDistanceThenByRow() throws {
        let gallery: [UInt8] = [0b1111, 0, 0b0001, 0, 0b0001, 0, 0, 0]
        let found = try nearest(to: [0, 0], in: gallery, count: 3)
        XCTAssertEqual(found, [Neighbour(id: 3, distance: 0), Neighbour(id: 1, distance: 1), Neighbour(id: 2, distance: 1)])
        XCTAssertThrowsError(try nearest(to: [0, 0], in: gallery, count: 0))
        XCTAssertThrowsError(try nearest(to: [0, 0], in: [1], count: 1))
    }
}
